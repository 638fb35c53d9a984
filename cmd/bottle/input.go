package main

import (
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// input reads from a terminal for a session, until stop. A read of the terminal itself
// would wait for the user's next line and swallow it, after the session has ended.
type input struct {
	file     *os.File
	mu       sync.Mutex // held while the terminal is read
	stopped  *os.File   // readable after stop
	stopping *os.File
}

func newInput(file *os.File) (*input, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	return &input{file: file, stopped: r, stopping: w}, nil
}

// Read implements io.Reader. It returns io.EOF after stop.
func (i *input) Read(p []byte) (int, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.stopped == nil {
		return 0, io.EOF
	}
	fds := []unix.PollFd{{Fd: int32(i.stopped.Fd()), Events: unix.POLLIN}, {Fd: int32(i.file.Fd()), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, os.NewSyscallError("poll", err)
		}
		if fds[0].Revents != 0 {
			return 0, io.EOF
		}
		return i.file.Read(p)
	}
}

// stop ends the input. When it returns, nothing is read any more. The terminal must still
// be in the mode of the session.
func (i *input) stop() error {
	err := i.stopping.Close() // poll reports a hangup
	i.mu.Lock()
	defer i.mu.Unlock()
	err = errors.Join(err, i.stopped.Close())
	i.stopped = nil
	return err
}
