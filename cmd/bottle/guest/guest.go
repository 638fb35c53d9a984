// Package guest is what bottle does inside a bottle: PID 1, and the helper that
// every session begins with. It runs in the sandbox, under the agent's eyes, and
// every session waits for it, so that it is small: a program of its own
// (cmd/bottle/guest/program), which bottle carries with it. A bottle that was
// built without that runs itself in its place. It imports nothing of this
// module, and little else.
package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Exit codes as docker and shells have them.
const (
	exitBottle     = 125 // bottle itself failed
	exitNotRunable = 126 // the command is there and cannot be run
	exitNotFound   = 127 // the command is not there
	exitSignal     = 128 // plus the signal's number
)

// Program is the path by which this program is known inside a bottle.
const Program = "/.bottle/init"

// Run does what it is asked for inside a bottle, if the program was started as
// that: "init", PID 1; "exec [OPTION VALUE]… -- COMMAND", a session; "agent
// SOCKET", the ssh agent's inner end; "connect PROXY HOST PORT", ssh's way out. ok
// is false if it was not. code is for os.Exit.
func Run(args []string) (code int, ok bool) {
	if len(args) == 0 || os.Args[0] != Program {
		return 0, false
	}
	switch args[0] {
	case "init":
		return guestInit(), true
	case "exec":
		return guestExec(args[1:]), true
	case "agent":
		return guestRelay(args[1:]), true
	case "connect":
		return guestConnect(args[1:]), true
	}
	return 0, false
}

// guestInit waits for every child that is left to it, and otherwise for ever:
// sessions are started beside it, and the sandbox lasts as long as it does. It
// needs nothing of the image.
func guestInit() int {
	sig := make(chan os.Signal, 8)
	signal.Notify(sig, syscall.SIGCHLD, syscall.SIGTERM, syscall.SIGINT)
	for {
		reap()
		if s := <-sig; s != syscall.SIGCHLD {
			return exitSignal + int(s.(syscall.Signal))
		}
	}
}

func reap() {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if pid <= 0 {
			return
		}
	}
}

// guestExec becomes the command, with variables that must not pass through
// containerd.
func guestExec(args []string) int {
	for len(args) > 1 && args[0] != "--" {
		if err := guestOption(args[0], args[1]); err != nil {
			fmt.Fprintln(os.Stderr, "bottle:", err)
			if args[0] == "--dir" {
				return exitNotRunable
			}
			return exitBottle
		}
		args = args[2:]
	}
	if len(args) < 2 {
		fmt.Fprintln(os.Stderr, "bottle: no command")
		return exitBottle
	}
	forbidCores()
	command := args[1:]
	if err := approveKey(); err != nil {
		fmt.Fprintln(os.Stderr, "bottle:", err) // the user can still answer themselves
	}
	path, err := lookCommand(command[0])
	if err == nil {
		err = syscall.Exec(path, command, os.Environ())
	}
	fmt.Fprintf(os.Stderr, "bottle: run %s: %v\n", command[0], err)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
		return exitNotFound
	}
	return exitNotRunable
}

// forbidCores keeps the variables out of core files of the command's, under runc:
// those that the host pipes to a program are bounded by no limit, and what is
// left out of them here is left out of every child's (core(5)). gVisor writes
// no cores, and has no such file.
func forbidCores() { _ = os.WriteFile("/proc/self/coredump_filter", []byte("0"), 0) }

func guestOption(name, value string) error {
	switch name {
	case "--env-file":
		return loadEnv(value)
	case "--size":
		var size unix.Winsize
		if _, err := fmt.Sscanf(value, "%dx%d", &size.Col, &size.Row); err != nil {
			return fmt.Errorf("read the terminal's size %q: %w", value, err)
		}
		// A command that is told no size is better than none.
		_ = unix.IoctlSetWinsize(0, unix.TIOCSWINSZ, &size)
		return nil
	case "--dir":
		return enter(value)
	case "--workdir":
		// An image's that its user may not enter keeps nobody from working.
		if err := enterMade(value); err != nil {
			fmt.Fprintln(os.Stderr, "bottle:", err)
		}
		return nil
	}
	return fmt.Errorf("no option %s", name)
}

func enter(dir string) error {
	if err := os.Chdir(dir); err != nil {
		return fmt.Errorf("begin in %s: %w", dir, errors.Unwrap(err))
	}
	return nil
}

// enterMade makes a folder that is missing: one in another file system, such as
// /tmp's, cannot be made from outside.
func enterMade(dir string) error {
	err := enter(dir)
	if errors.Is(err, fs.ErrNotExist) && os.MkdirAll(dir, 0o755) == nil {
		err = enter(dir)
	}
	return err
}

// lookCommand finds a command as execvp(3) does; a path is taken as it is.
func lookCommand(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	denied := false
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		p := filepath.Join(dir, name)
		fi, err := os.Stat(p)
		if err != nil || fi.IsDir() {
			continue
		}
		if fi.Mode()&0o111 != 0 {
			return p, nil
		}
		denied = true
	}
	if denied {
		return "", fs.ErrPermission
	}
	return "", exec.ErrNotFound
}

// loadEnv sets the NAME=VALUE entries of a file, each ended by a NUL.
func loadEnv(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read the bottle's environment: %w", err)
	}
	for _, kv := range bytes.Split(data, []byte{0}) {
		name, value, ok := bytes.Cut(kv, []byte{'='})
		if !ok {
			continue
		}
		if err := os.Setenv(string(name), string(value)); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}
