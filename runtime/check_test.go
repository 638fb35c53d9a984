package runtime_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/runtime"
)

func TestCheckRuntime(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		dir := t.TempDir()
		if err := c.CheckRuntime(ctx(t), cfg.Runtime, dir); err != nil {
			t.Fatal(err)
		}
		wantEmpty(t, dir)
	})
}

func TestCheckRuntimeWithoutBinary(t *testing.T) {
	leakcheck.Check(t)
	c := connect(t)
	t.Setenv("PATH", t.TempDir())
	defer t.Setenv("PATH", os.Getenv("PATH")) // the leak check needs its tools
	dir := t.TempDir()
	if err := c.CheckRuntime(ctx(t), runtime.RuntimeRunsc, dir); !errors.Is(err, runtime.ErrNoRunsc) {
		t.Errorf("PATH without runsc: %v", err)
	}
	if err := c.CheckRuntime(ctx(t), runtime.RuntimeRunc, dir); !errors.Is(err, runtime.ErrNoRunc) {
		t.Errorf("PATH without runc: %v", err)
	}
	wantEmpty(t, dir)
}

// TestCheckRuntimeWithBadShim checks a shim that containerd finds but that fails.
func TestCheckRuntimeWithBadShim(t *testing.T) {
	leakcheck.Check(t)
	c := connect(t)
	for rt, shim := range map[string]string{
		runtime.RuntimeRunsc: "containerd-shim-runsc-v1", runtime.RuntimeRunc: "containerd-shim-runc-v2",
	} {
		overmount(t, shim)
		dir := t.TempDir()
		if err := c.CheckRuntime(ctx(t), rt, dir); !errors.Is(err, runtime.ErrNoShim) {
			t.Errorf("%s: %v", shim, err)
		}
		wantEmpty(t, dir)
	}
}

func TestCheckUnknownRuntime(t *testing.T) {
	leakcheck.Check(t)
	c := connect(t)
	dir := t.TempDir()
	for _, name := range []string{"kata", "", "RUNC", "../runc"} {
		if err := c.CheckRuntime(ctx(t), name, dir); !errors.Is(err, runtime.ErrUnknownRuntime) {
			t.Errorf("runtime %q: %v", name, err)
		}
	}
	wantEmpty(t, dir)
}

// overmount replaces a program with one that always fails, in the test host's mount
// namespace, which containerd shares.
func overmount(t *testing.T, program string) {
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
	t.Cleanup(func() { must(t, unix.Unmount(file, unix.MNT_DETACH)) })
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		t.Errorf("left in the scratch directory: %s", e.Name())
	}
}
