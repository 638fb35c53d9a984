package guest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	proto "github.com/bot-bottle/bottle/internal/sessionproto"
)

// guestAttach connects standard input and output to PID 1 until one of them ends. What
// is exchanged is package session's protocol.
func guestAttach() int {
	conn, err := dialSession()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bottle:", err)
		return exitBottle
	}
	return joinSession(conn)
}

func dialSession() (*net.UnixConn, error) {
	// PID 1 closes the connection when the session has ended, also after SIGTERM to all.
	signal.Ignore(syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT)
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: proto.Socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("connect to PID 1: %w", err)
	}
	return conn, nil
}

func joinSession(conn *net.UnixConn) int {
	go func() {
		copyInput(conn)
		_ = conn.CloseWrite() // PID 1 notices that the client has left
	}()
	if _, err := io.Copy(os.Stdout, conn); err != nil {
		return exitBottle // bottle does not read any more
	}
	return 0
}

// copyInput copies standard input to PID 1. A client on the host that was killed is
// noticed by nothing but its silence, because the shim keeps its pipes open: this
// process then exits, even if it is writing to one of them.
func copyInput(conn io.Writer) {
	silent := time.AfterFunc(proto.PingTimeout, func() { os.Exit(exitBottle) })
	defer silent.Stop()
	buf := make([]byte, proto.Chunk)
	for {
		silent.Reset(proto.PingTimeout)
		n, err := os.Stdin.Read(buf)
		silent.Stop() // PID 1 may wait for the session's process to read its input
		if n > 0 {
			if _, werr := conn.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// guestSession asks PID 1 to start the session with this process's environment and
// directory, and then does what guestAttach does. Options are those of guestExec and
// --tty, --stdin and --attach, each with "true" or "false".
func guestSession(args []string) int {
	env := newEnviron(os.Environ())
	req := proto.Request{Op: proto.OpStart, Spec: &proto.Spec{}}
	flags := map[string]*bool{"--tty": &req.Spec.Terminal, "--stdin": &req.Spec.Stdin, "--attach": &req.Attach}
	for len(args) > 1 && args[0] != "--" {
		var err error
		if flag := flags[args[0]]; flag != nil {
			*flag = args[1] == "true"
		} else if args[0] == "--size" {
			_, err = fmt.Sscanf(args[1], "%dx%d", &req.Size.Width, &req.Size.Height)
		} else {
			err = guestOption(env, args[0], args[1])
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "bottle:", err)
			return exitBottle
		}
		args = args[2:]
	}
	if len(args) < 2 {
		fmt.Fprintln(os.Stderr, "bottle: missing command")
		return exitBottle
	}
	code, err := startSession(req, env, args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "bottle:", err)
	}
	return code
}

func startSession(req proto.Request, env *environ, command []string) (int, error) {
	prepareCommand(env)
	path, err := lookCommand(env, "", command[0])
	if err != nil {
		return codeOf(err), fmt.Errorf("run %s: %w", command[0], err)
	}
	req.Spec.Path, req.Spec.Args, req.Spec.Env = path, command, env.list()
	// Without a directory, the process starts where this one is.
	if req.Spec.Dir, err = os.Getwd(); err != nil {
		req.Spec.Dir = "/"
	}
	conn, err := dialSession()
	if err != nil {
		return exitBottle, err
	}
	if _, err := conn.Write(proto.JSON(proto.KindRequest, req)); err != nil {
		return exitBottle, errors.Join(fmt.Errorf("start session: %w", err), conn.Close())
	}
	return joinSession(conn), nil
}
