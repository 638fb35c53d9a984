package egress

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// Run runs the proxy as the process of a task, as Main does: SIGHUP reloads its policy, SIGINT and
// SIGTERM end it. When the log's reader is gone, a write to standard output ends the
// process (os/signal, "SIGPIPE"): no request passes unlogged, and the watcher restarts the
// proxy with a new log.
func Run(ctx context.Context, configPath, listen string, stdout, stderr io.Writer) error {
	// Secrets to insert must not get into a core dump, nor be read by another process of
	// the same user. Without an effect the proxy works as well.
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return Main(ctx, configPath, listen, hup, stdout, stderr)
}

// Descriptors that containerd's shim passes to a logging program: the task's
// standard output and error, and one to close when it is ready to read.
const (
	logStdout = 3
	logStderr = 4
	logReady  = 5
)

// RunLogger runs the logging program of a proxy's shim. The shim sends SIGTERM when the
// task is deleted. What the task wrote before must still be read.
func RunLogger(file string) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	defer signal.Stop(stop)
	out, errs := os.NewFile(logStdout, "stdout"), os.NewFile(logStderr, "stderr")
	if err := os.NewFile(logReady, "ready").Close(); err != nil {
		return err
	}
	return KeepLog(file, stop, out, errs)
}
