package egress

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/bot-bottle/bottle/internal/confine"
)

// TestConfinedProxy: the proxy reads no file outside of the directory of its configuration.
// The control is a reload of the same text inside of it.
func TestConfinedProxy(t *testing.T) {
	dir, other := t.TempDir(), filepath.Join(t.TempDir(), "proxy.json")
	path := filepath.Join(dir, "proxy.json")
	l := listen(t)
	text := fmt.Appendf(nil, `{"listen": %q, "allow": []}`, l.Addr())
	_ = l.Close()
	for _, p := range []string{path, other} {
		if err := os.WriteFile(p, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log := newEventLog()
	cmd := exec.Command("/proc/self/exe", "proxy", path)
	cmd.Env, cmd.Stdout = append(os.Environ(), processVariable+"=1"), log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	log.waitEvent(t, EventStartup)
	reload := func() {
		t.Helper()
		if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	reload()
	log.waitEvent(t, EventReload)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(other, path); err != nil {
		t.Fatal(err)
	}
	reload()
	if confine.ABI() == 0 {
		log.waitEvent(t, EventReload)
		return
	}
	e := log.wait(t, "rejected reload", func(e Entry) bool { return e.Event == EventError && e.Target == "" })
	if !strings.Contains(e.Reason, "permission denied") {
		t.Errorf("logged %+v", e)
	}
}

// TestConfinedLogger: the logger of a proxy writes to no file outside of the log's
// directory. The control is a log inside of it.
func TestConfinedLogger(t *testing.T) {
	dir, other := t.TempDir(), filepath.Join(t.TempDir(), "victim")
	inside, outside := filepath.Join(dir, "egress.log"), filepath.Join(dir, "link")
	if err := os.Symlink(other, outside); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{inside: true, outside: confine.ABI() == 0} {
		out, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		none, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteString("a line\n"); err != nil {
			t.Fatal(err)
		}
		_ = w.Close()
		cmd := exec.Command("/proc/self/exe", loggerProcess, path)
		cmd.Env, cmd.ExtraFiles = append(os.Environ(), processVariable+"=1"), []*os.File{out, none, none}
		text, err := cmd.CombinedOutput()
		_, _ = out.Close(), none.Close()
		if _, serr := os.Stat(path); (serr == nil) != want || (err == nil) != want {
			t.Errorf("%s: %v, %v, want success %v\n%s", filepath.Base(path), err, serr, want, text)
		}
		if !want && !strings.Contains(string(text), "permission denied") {
			t.Errorf("%s: %s", filepath.Base(path), text)
		}
	}
}

// Arguments and environment with which TestMain runs the proxy or its logger.
const (
	processVariable = "EGRESS_TEST_PROCESS"
	loggerProcess   = "logger"
)

// runProcess is the process of a proxy or its logger.
func runProcess(args []string) error {
	if args[0] == loggerProcess {
		return RunLogger(args[1])
	}
	return Run(context.Background(), args[1], "", os.Stdout, os.Stderr)
}
