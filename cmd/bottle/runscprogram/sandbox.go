package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/hosttask"
	"github.com/bot-bottle/bottle/internal/runscstate"
)

// record is what runsc has recorded of a sandbox.
type record struct{ runscstate.State }

func (c call) read() (record, error) {
	s, err := runscstate.Read(c.root, c.id)
	if err != nil || s.Sandbox.Pid <= 0 {
		return record{}, errLeave
	}
	return record{s}, nil
}

// ended reports whether the process of a sandbox has ended. It can be a zombie for a while.
func (s record) ended() bool {
	_, exists := hosttask.ProcessOf(s.Sandbox.Pid)
	return !exists
}

// refusedError is the answer of a sandbox that could not do what it was asked for.
type refusedError struct{ text string }

func (e *refusedError) Error() string { return e.text }

// answerLimit bounds the answer of a sandbox, in which an attacker may have got control.
const answerLimit = 64 << 10

// call calls a method of a sandbox (gVisor pkg/urpc): the request and the answer are JSON
// objects, one after the other on a stream.
func (s record) call(method string, arg, result any) error {
	conn, err := connect(s.Sandbox.ControlSocketPath)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // nothing is written any more
	if err := json.NewEncoder(conn).Encode(map[string]any{"method": method, "arg": arg}); err != nil {
		return err
	}
	var answer struct {
		Success *bool           `json:"success"`
		Err     string          `json:"err"`
		Result  json.RawMessage `json:"result"`
	}
	in := bufio.NewReaderSize(io.LimitReader(conn, answerLimit), 512)
	if err := json.NewDecoder(in).Decode(&answer); err != nil {
		return fmt.Errorf("call %s: %w", method, err)
	}
	if answer.Success == nil || !*answer.Success {
		return &refusedError{fmt.Sprintf("call %s: %s", method, answer.Err)}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(answer.Result, result); err != nil {
		return &refusedError{fmt.Sprintf("call %s: %v", method, err)}
	}
	return nil
}

// pathMax is the size of the path in a socket's address, with its end (unix(7)).
const pathMax = 108

// connect connects to a socket. Package net would triple the size of the program.
func connect(path string) (io.ReadWriteCloser, error) {
	if len(path) >= pathMax {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", path, err)
		}
		defer func() { _ = unix.Close(fd) }() // nothing was written
		path = "/proc/self/fd/" + strconv.Itoa(fd)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	conn := os.NewFile(uintptr(fd), path)
	for {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect to %s: %w", path, err), conn.Close())
	}
	return conn, nil
}

// open returns a descriptor of a sandbox's process, which can have ended.
func (s record) open() (pidfd int, err error) { return unix.PidfdOpen(s.Sandbox.Pid, 0) }

// waitLimit bounds the wait for a sandbox whose first process has ended (gVisor runsc/sandbox,
// waitForStopped).
const waitLimit = 2 * time.Minute

// waitFor waits until the process of a descriptor has ended.
func waitFor(pidfd int) error {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for end := time.Now().Add(waitLimit); time.Now().Before(end); {
		n, err := unix.Poll(fds, int(time.Until(end).Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for the sandbox: %w", err)
		}
		if n > 0 {
			return nil
		}
	}
	return errors.New("the sandbox does not end")
}
