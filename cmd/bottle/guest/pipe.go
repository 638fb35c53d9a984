package guest

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The pipes of a session. They are not in Go's poller: that is woken by every write of the
// process, and by every read, which takes longer under gVisor than the write itself. Here a
// pipe is waited for only while there is nothing to read, or no room.

// pipeSize is the size of a session's pipes, if the kernel allows it.
const pipeSize = 256 << 10

// stopper ends what waits for a session's pipes.
type stopper struct{ r, w *os.File }

func newStopper() (*stopper, error) {
	r, w, err := blockingPipe()
	return &stopper{r, w}, err
}

// stop makes wait and pause return false from now on.
func (s *stopper) stop() { _ = s.w.Close() } // may be closed already

// release frees the stopper. Nothing waits any more.
func (s *stopper) release() { _ = errors.Join(s.w.Close(), s.r.Close()) }

// wait waits until a file is ready for events. It returns false after stop.
func (s *stopper) wait(f *os.File, events int16) bool {
	return s.poll(-1, unix.PollFd{Fd: int32(s.r.Fd())}, unix.PollFd{Fd: int32(f.Fd()), Events: events})
}

// pause waits for a time. It returns false after stop.
func (s *stopper) pause(d time.Duration) bool {
	return s.poll(int(d.Milliseconds()), unix.PollFd{Fd: int32(s.r.Fd())})
}

func (s *stopper) poll(timeout int, fds ...unix.PollFd) bool {
	for {
		_, err := unix.Poll(fds, timeout)
		if !errors.Is(err, unix.EINTR) {
			return err == nil && fds[0].Revents == 0
		}
	}
}

// blockingPipe is os.Pipe without Go's poller.
func blockingPipe() (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize) // it works with less
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// outputPipe is the reading end of a process's output.
type outputPipe struct {
	*os.File
	stopper *stopper
	pace    pace
	paced   func() bool // whether the output may be delayed
}

// Read reads what there is. After stop it returns io.EOF.
func (o *outputPipe) Read(p []byte) (int, error) {
	if o.pace.due() && o.paced() {
		o.stopper.pause(paceTime)
	}
	began := time.Now()
	if !o.stopper.wait(o.File, unix.POLLIN) {
		return 0, io.EOF
	}
	o.pace.waited(time.Since(began))
	return o.File.Read(p)
}

// pace lets a pipe fill before it is read, while much is written to it.
type pace struct{ quick int } // reads in sequence that hardly waited

const (
	quickReads = 8
	paceTime   = time.Millisecond
	// roomTime is how long a process may go on to read from a pipe that was full, so that
	// there is room for more than it takes with one read.
	roomTime = 3 * time.Millisecond
)

func (p *pace) due() bool { return p.quick >= quickReads }

func (p *pace) waited(d time.Duration) {
	if p.quick++; d > paceTime {
		p.quick = 0
	}
}

// inputPipe is the writing end of a process's input.
type inputPipe struct {
	*os.File
	stopper *stopper
}

// newInputPipe makes the end non-blocking, which os.File does not know.
func newInputPipe(w *os.File, s *stopper) (*inputPipe, error) {
	return &inputPipe{w, s}, unix.SetNonblock(int(w.Fd()), true)
}

// try writes what the pipe takes at once.
func (i *inputPipe) try(p []byte) int {
	n, err := ignoringEINTR(func() (int, error) { return unix.Write(int(i.Fd()), p) })
	if err != nil {
		return 0 // Write meets the error again
	}
	return n
}

// Write writes all of p, unless the process does not read any more, or stop was called.
func (i *inputPipe) Write(p []byte) (written int, err error) {
	for len(p) > 0 {
		n, err := ignoringEINTR(func() (int, error) { return unix.Write(int(i.Fd()), p) })
		switch {
		case err == nil:
			written, p = written+n, p[n:]
		case !errors.Is(err, unix.EAGAIN):
			return written, os.NewSyscallError("write", err)
		case !i.stopper.wait(i.File, unix.POLLOUT):
			return written, os.ErrClosed
		case !i.stopper.pause(roomTime):
			return written, os.ErrClosed
		}
	}
	return written, nil
}

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
