package guest

import (
	"errors"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

// guestInit is PID 1. It reaps orphaned processes and runs until it is signalled. The
// sandbox ends when PID 1 exits. It needs no file of the image.
func guestInit() int {
	sig := make(chan os.Signal, 8)
	signal.Notify(sig, syscall.SIGCHLD, syscall.SIGTERM, syscall.SIGINT)
	for {
		reap()
		if s := <-sig; s != syscall.SIGCHLD {
			terminate()
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

// terminateInterval is how often terminate checks for remaining processes. Sessions are
// not children of PID 1, which is therefore not notified of their end.
const terminateInterval = 20 * time.Millisecond

// terminate asks all processes to end, and returns when they have. A stopped process gets
// the request when it continues. There is no deadline: whoever stops the sandbox kills it
// after one.
func terminate() {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGCONT} {
		_ = syscall.Kill(-1, s) // all but PID 1 (kill(2)); fails if there are none
	}
	for !alone() {
		time.Sleep(terminateInterval)
		reap()
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
