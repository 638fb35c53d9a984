package runtime_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/runtime"
)

// sharing returns a client, as of another process, with a run directory.
func sharing(t *testing.T, dir string) *runtime.Client {
	t.Helper()
	cfg := config(dir)
	cfg.Shim = labtest.Program(t)
	c, err := runtime.Connect(ctx(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, c.Close()) })
	return c
}

// TestProven: what was recorded counts for another process until a program or containerd
// changes. Each change has its control: before it, and after it was reverted, the record
// counts. Whether the check still finds the fault is a part of the test: the record must not
// hide it.
func TestProven(t *testing.T) {
	leakcheck.Check(t)
	dir, err := os.MkdirTemp("/run", "bottle-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	names := map[string][]string{
		runtime.RuntimeRunsc: {"containerd-shim-runsc-v1", "runsc"},
		runtime.RuntimeRunc:  {"containerd-shim-runc-v2", "runc"},
	}
	proven := func(when string, want bool) {
		t.Helper()
		for name := range names {
			if got := sharing(t, dir).Proven(ctx(t), name); got != want {
				t.Errorf("%s: %s proven: %v", when, name, got)
			}
		}
	}
	record := func() {
		t.Helper()
		c := sharing(t, dir)
		for name := range names {
			must(t, c.CheckRuntime(ctx(t), name, t.TempDir()))
		}
		proven("checked, before a launch", false)
		must(t, c.RecordProven())
	}
	proven("without a record", false)
	record()
	proven("recorded", true)
	if c := sharing(t, dir); !c.Proven(ctx(t), runtime.RuntimeRunsc) || c.CheckShim() != nil {
		t.Errorf("the shim that survives containerd is not known: %v", c.CheckShim())
	}
	for name, programs := range names {
		for _, program := range programs {
			restore := replaceProgram(t, program)
			c := sharing(t, dir)
			if c.Proven(ctx(t), name) {
				t.Errorf("with another %s: %s proven", program, name)
			}
			if err := c.CheckRuntime(ctx(t), name, t.TempDir()); program != name && !errors.Is(err, runtime.ErrNoShim) {
				t.Errorf("with another %s: CheckRuntime(%s) = %v", program, name, err)
			}
			restore()
			proven("the same programs again", true)
		}
	}
	// This process's own search for the runtimes is a part, too.
	path := os.Getenv("PATH")
	t.Setenv("PATH", t.TempDir())
	proven("with another PATH", false)
	must(t, os.Setenv("PATH", path))
	proven("with the PATH again", true)
	containerdService(t, "stop")
	containerdService(t, "start")
	proven("after a restart of containerd", false)
	record()
	proven("recorded again", true)
}

// replaceProgram replaces a program with one that always fails, in the test host's mount
// namespace, which containerd shares.
func replaceProgram(t *testing.T, program string) (restore func()) {
	t.Helper()
	file, err := exec.LookPath(program)
	if err != nil {
		t.Fatal(err)
	}
	if file, err = filepath.EvalSymlinks(file); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("/bin/false", file, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("mount over %s: %v", file, err)
	}
	return func() { must(t, unix.Unmount(file, unix.MNT_DETACH)) }
}
