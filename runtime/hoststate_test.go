package runtime_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/runtime"
)

// wantState checks that a list reads the same state from the host as containerd reports.
func wantState(t *testing.T, c *runtime.Client, id, want string) {
	t.Helper()
	onHost, reported, pids, err := c.States(ctx(t), id)
	if err != nil || onHost != want || reported != want || pids[0] != pids[1] || pids[0] == 0 {
		t.Errorf("%s: %q on the host, %q from containerd, PIDs %d, %v; want %q", id, onHost, reported, pids, err, want)
	}
}

// TestStatesOnHost compares the states that a list reads from the host with containerd's,
// in each state of a task under each runtime.
func TestStatesOnHost(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		task := created(t, c, cfg)
		wantState(t, c, cfg.Name, "created")
		must(t, task.Start(ctx(t)))
		wantState(t, c, cfg.Name, "running")
		nctx := namespaces.WithNamespace(ctx(t), c.Namespace())
		cont, err := c.Containerd().LoadContainer(nctx, cfg.Name)
		if err != nil {
			t.Fatal(err)
		}
		loaded, err := cont.Task(nctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		must(t, loaded.Pause(nctx))
		wantState(t, c, cfg.Name, "paused")
		must(t, loaded.Resume(nctx))
		wantState(t, c, cfg.Name, "running")
		must(t, syscall.Kill(task.PID(), syscall.SIGKILL))
		<-task.Exited()
		if onHost, _, _, err := c.States(ctx(t), cfg.Name); onHost != "" || err != nil {
			t.Errorf("ended: %q on the host, %v", onHost, err)
		}
	})
}

func TestProxyStateOnHost(t *testing.T) {
	leakcheck.Check(t)
	c := connect(t)
	cfg := proxyConfig(t, c, "claude-bottle-test-proxystate", "proxy")
	dir := filepath.Join(cfg.Dir, "proxy") // as in a bottle
	must(t, os.Mkdir(dir, 0o700))
	must(t, os.Rename(filepath.Join(cfg.Dir, "rootfs"), filepath.Join(dir, "rootfs")))
	cfg.Dir = dir
	task := startedProxy(t, c, cfg)
	wantState(t, c, task.ID, "running")
}
