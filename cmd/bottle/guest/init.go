package guest

import (
	"errors"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	proto "github.com/bot-bottle/bottle/internal/sessionproto"
)

// guestInit is PID 1. It reaps orphaned processes, holds the session, if there is one, and
// runs until it is signalled. The sandbox ends when PID 1 exits. It needs no file of the
// image.
func guestInit() int {
	excludeFromCores() // inherited by the session
	sig := make(chan os.Signal, 8)
	signal.Notify(sig, syscall.SIGCHLD, syscall.SIGTERM, syscall.SIGINT)
	h := newHolder()
	// Without the directory, for example in a bottle of another version, there is no
	// session to hold, and a client reports that it cannot connect.
	if l, err := listenSession(proto.Socket); err == nil {
		go h.serve(l)
	}
	go h.connect(os.Stdin, proto.GuestDir)
	for {
		h.reap()
		select {
		case s := <-sig:
			if s != syscall.SIGCHLD {
				h.terminate()
				return exitSignal + int(s.(syscall.Signal))
			}
		case <-h.cold: // nobody can use the bottle
			return exitBottle
		}
	}
}

// reap handles all changes of children's states.
func (h *holder) reap() {
	for {
		h.mu.Lock()
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG|syscall.WUNTRACED, nil)
		if pid > 0 {
			h.child(pid, status)
		}
		h.mu.Unlock()
		if pid <= 0 && !errors.Is(err, syscall.EINTR) {
			return
		}
	}
}

// terminateInterval is how often terminate checks for remaining processes. Sessions are
// not children of PID 1, which is therefore not notified of their end.
const terminateInterval = 20 * time.Millisecond

// terminate asks all processes to end, and returns when they have. A stopped process gets
// the request when it continues. There is no deadline: whoever stops the sandbox kills it
// after one.
func (h *holder) terminate() {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGCONT} {
		_ = syscall.Kill(-1, s) // all but PID 1 (kill(2)); fails if there are none
	}
	for !alone() {
		time.Sleep(terminateInterval)
		h.reap()
	}
	h.settle()
}

// settleTime bounds the wait for clients that do not read the end of their sessions.
const settleTime = time.Second

// settle waits until the clients of sessions that have ended know it.
func (h *holder) settle() {
	done := make(chan struct{})
	go func() { h.ending.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(settleTime):
	}
}

// alone reports whether PID 1 is the only process.
func alone() bool {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return true
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() {
			return false
		}
	}
	return true
}
