package guest

import (
	"fmt"
	"os"
	"os/signal"
	goruntime "runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// onTerminal reports whether standard input is a terminal.
func onTerminal() bool {
	_, err := unix.IoctlGetTermios(0, unix.TCGETS)
	return err == nil
}

// notForwarded are signals that a supervisor gets for itself: the terminal sends its own
// to the foreground process group, which is the command's, and Go's runtime uses SIGURG.
var notForwarded = []syscall.Signal{
	syscall.SIGURG, syscall.SIGWINCH, syscall.SIGCONT, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGPIPE,
}

// supervise runs a command in the foreground of this process's terminal and returns its
// exit code. A command that is stopped, as by Ctrl-Z, is resumed: there is no shell that
// could do it later, and the caller's terminal is raw.
func supervise(path string, command, env []string) (code int, err error) {
	sigs := make(chan os.Signal, 64)
	// Not ignored, which the command would inherit.
	signal.Notify(sigs)
	// The thread that has forked must live on: its end would send Pdeathsig (prctl(2)).
	goruntime.LockOSThread()
	pid, err := syscall.ForkExec(path, command, &syscall.ProcAttr{
		Env: env, Files: []uintptr{0, 1, 2},
		Sys: &syscall.SysProcAttr{Foreground: true, Ctty: 0, Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return codeOf(err), err
	}
	var stops stopNotes
	for s := range sigs {
		sig := s.(syscall.Signal)
		if sig != syscall.SIGCHLD {
			if !slices.Contains(notForwarded, sig) {
				_ = syscall.Kill(pid, sig) // it may have ended
			}
			continue
		}
		for {
			var status syscall.WaitStatus
			child, err := syscall.Wait4(-1, &status, syscall.WNOHANG|syscall.WUNTRACED, nil)
			if err == syscall.EINTR {
				continue
			}
			if child <= 0 {
				break
			}
			switch {
			case child != pid:
			case status.Stopped():
				stops.resume(pid, os.Stdout.Write)
			default:
				return exitCode(status), nil
			}
		}
	}
	return exitBottle, nil // unreachable: sigs is never closed
}

func exitCode(status syscall.WaitStatus) int {
	if status.Signaled() {
		return exitSignal + int(status.Signal())
	}
	return status.ExitStatus()
}

// stopNotes resumes stopped processes and writes a note about it, at most once per
// stopNoteInterval.
type stopNotes struct {
	mu   sync.Mutex
	last time.Time
}

const (
	stopNoteInterval = time.Second
	noteStopped      = "\r\nbottle: a session cannot be suspended, it continues\r\n"
)

// resume resumes the process group of a command.
func (n *stopNotes) resume(pid int, write func([]byte) (int, error)) {
	n.mu.Lock()
	now := time.Now()
	note := now.Sub(n.last) >= stopNoteInterval
	if note {
		n.last = now
	}
	n.mu.Unlock()
	if note {
		if _, err := write([]byte(noteStopped)); err != nil {
			fmt.Fprintln(os.Stderr, "bottle:", err)
		}
	}
	_ = syscall.Kill(-pid, syscall.SIGCONT) // it may have ended
	_ = syscall.Kill(pid, syscall.SIGCONT)
}
