package egress

import (
	"context"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/confine"
)

// Run runs the proxy as the process of a task, as Main does, confined to its files: the
// configuration and what it names are in one directory. SIGHUP reloads its policy, SIGINT
// and SIGTERM end it. When the log's reader is gone, a write to standard output ends the
// process (os/signal, "SIGPIPE"): no request passes unlogged, and the watcher restarts the
// proxy with a new log.
func Run(ctx context.Context, configPath, listen string, stdout, stderr io.Writer) error {
	// Secrets to insert must not get into a core dump, nor be read by another process of
	// the same user. Without an effect the proxy works as well.
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	if err := confine.Paths(append([]string{filepath.Dir(configPath)}, proxyFiles...), nil); err != nil {
		return err
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return Main(ctx, configPath, listen, hup, stdout, stderr)
}

// proxyFiles are what the proxy reads besides its configuration: Go's resolver reads the
// files in /etc again when they change, and net.Listen the kernel's limit.
var proxyFiles = []string{"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/proc/sys/net/core/somaxconn"}

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
	// The shim has started it on the host, as root.
	if err := confine.Paths(nil, []string{filepath.Dir(file)}); err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	defer signal.Stop(stop)
	out, errs := os.NewFile(logStdout, "stdout"), os.NewFile(logStderr, "stderr")
	if err := os.NewFile(logReady, "ready").Close(); err != nil {
		return err
	}
	return KeepLog(file, stop, out, errs)
}
