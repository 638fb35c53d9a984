package runtime_test

import (
	"errors"
	"os"
	"testing"

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

// overmount is replaceProgram for the rest of a test.
func overmount(t *testing.T, program string) {
	t.Helper()
	t.Cleanup(replaceProgram(t, program))
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
