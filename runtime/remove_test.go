package runtime_test

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/runtime"
)

// TestRemove removes agents in every state, twice.
func TestRemove(t *testing.T) {
	for _, s := range []struct {
		state, status string
		reach         func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig)
	}{
		{"created", "created", func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) { created(t, c, cfg) }},
		{"running", "running", func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) { started(t, c, cfg) }},
		{"paused", "paused", func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
			started(t, c, cfg)
			ctr(t, "tasks", "pause", cfg.Name)
		}},
		{"stopped", "stopped", func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
			task := started(t, c, cfg)
			must(t, syscall.Kill(task.PID(), syscall.SIGKILL))
			<-task.Exited()
		}},
		{"busy", "running", func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
			started(t, c, cfg)
			script(t, c, cfg.Name, "for i in 1 2 3; do setsid sleep 300 >/dev/null 2>&1 </dev/null & done")
		}},
		{"without a task", "none", func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
			task := started(t, c, cfg)
			must(t, syscall.Kill(task.PID(), syscall.SIGKILL))
			<-task.Exited()
			ctr(t, "tasks", "delete", cfg.Name)
		}},
	} {
		t.Run(s.state, func(t *testing.T) {
			underEach(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
				s.reach(t, c, cfg)
				wantListed(t, c, cfg, s.status)
				remove(t, c, cfg.Name)
				wantGone(t, c, cfg.Name)
				remove(t, c, cfg.Name)
			})
		})
	}
}

func TestRemoveAbsent(t *testing.T) {
	leakcheck.Check(t)
	c := connect(t)
	remove(t, c, "claude-bottle-never-was")
	remove(t, c, "claude-bottle-never-was")
	must(t, c.RemoveSnapshot(ctx(t), "claude-bottle-never-was"))
}

// TestRemoveAtOnce: `cleanup` and the end of `run` may meet.
func TestRemoveAtOnce(t *testing.T) {
	underEach(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		started(t, c, cfg)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if err := c.Remove(context.Background(), cfg.Name); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		wantGone(t, c, cfg.Name)
	})
}

// TestRemoveUnderSession: a session that is open when its bottle goes ends.
func TestRemoveUnderSession(t *testing.T) {
	underEach(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		started(t, c, cfg)
		out := newWatched()
		s, err := c.Exec(ctx(t), cfg.Name, runtime.SessionConfig{
			Args: []string{"bash", "-c", "echo ready; exec sleep 300"}, Stdout: out, Stderr: io.Discard,
		})
		if err != nil {
			t.Fatal(err)
		}
		out.await(t, "ready")
		remove(t, c, cfg.Name)
		if code, err := wait(t, s); err == nil && code == 0 {
			t.Error("a session that was killed ended with 0")
		}
		noSessions(t, c, cfg.Name)
	})
}

// TestRemoveAfterKill: somebody killed the sandbox and its shim.
func TestRemoveAfterKill(t *testing.T) {
	underEach(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		task := started(t, c, cfg)
		forgetShimSockets(t)
		shim := parent(t, task.PID())
		must(t, syscall.Kill(shim, syscall.SIGKILL))
		remove(t, c, cfg.Name)
		wantGone(t, c, cfg.Name)
	})
}

// forgetShimSockets removes, at the test's end, the socket that a killed shim
// leaves in containerd's folder; containerd uses it again for the same id.
func forgetShimSockets(t *testing.T) {
	t.Helper()
	list := func() []string {
		// Runsc's shim does not ask containerd for the folder.
		runc, err := filepath.Glob("/run/lab/s/*")
		must(t, err)
		runsc, err := filepath.Glob("/run/containerd/s/*")
		must(t, err)
		return append(runc, runsc...)
	}
	during := list()
	t.Cleanup(func() {
		for _, f := range list() {
			if slices.Contains(during, f) {
				_ = os.Remove(f) // gone already if containerd did it
			}
		}
	})
}

// TestLongName has a name of the greatest length that containerd takes beside
// the proxy's.
func TestLongName(t *testing.T) {
	for _, rt := range runtimes {
		t.Run(rt, func(t *testing.T) {
			leakcheck.Check(t)
			c := connect(t)
			name := "claude-bottle-"
			name += strings.Repeat("x", 76-len(runtime.ProxySuffix)-len(name))
			started(t, c, agentConfig(t, c, name, rt))
			if got := script(t, c, name, "echo here"); got != "here" {
				t.Errorf("%q", got)
			}
		})
	}
}

// TestTaken: whoever comes second is told, and leaves nothing of his and
// everything of the first one's.
func TestTaken(t *testing.T) {
	underEach(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		ctr(t, "containers", "create", image, cfg.Name)
		t.Cleanup(func() { remove(t, c, cfg.Name) })
		rootfs, err := c.PrepareRootFS(ctx(t), cfg.Name+"-2", image, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { must(t, c.RemoveSnapshot(ctx(t), cfg.Name+"-2")) })
		if _, err := c.CreateAgent(ctx(t), cfg, rootfs); !errors.Is(err, runtime.ErrTaken) {
			t.Fatalf("the name of another's container: %v", err)
		}
		if got := ctr(t, "snapshots", "ls"); strings.Contains(got, cfg.Name+"-2") || !strings.Contains(got, cfg.Name) {
			t.Errorf("snapshots after a name was taken:\n%s", got)
		}
		ids, err := c.IDs(ctx(t))
		if err != nil || !ids[cfg.Name] {
			t.Errorf("the first one's container is gone: %v, %v", ids, err)
		}
	})
}

// TestCreateFails: a task that cannot be created leaves nothing.
func TestCreateFails(t *testing.T) {
	underEach(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		cfg.Mounts = append(cfg.Mounts, runtime.Mount{Source: "/no/such/source", Target: "/mnt"})
		rootfs, err := c.PrepareRootFS(ctx(t), cfg.Name, image, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.CreateAgent(ctx(t), cfg, rootfs); err == nil {
			t.Error("a mount without source was taken")
		}
		wantGone(t, c, cfg.Name)
		must(t, c.Remove(ctx(t), cfg.Name))
	})
}

func wantListed(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig, status string) {
	t.Helper()
	list, err := c.List(ctx(t), "claude-bottle-")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		if l.ID != cfg.Name {
			continue
		}
		if l.Status != status || l.Role != runtime.RoleAgent || l.Labels[runtime.LabelName] != cfg.Name || l.Created.IsZero() {
			t.Errorf("%+v, want status %q", l, status)
		}
		if status == "running" && l.PID == 0 {
			t.Errorf("a running task without a pid: %+v", l)
		}
		return
	}
	t.Errorf("%s is not listed", cfg.Name)
}

func wantGone(t *testing.T, c *runtime.Client, name string) {
	t.Helper()
	ids, err := c.IDs(ctx(t))
	if err != nil || ids[name] {
		t.Errorf("container %s: %v, %v", name, ids[name], err)
	}
	keys, err := c.Snapshots(ctx(t))
	if err != nil {
		t.Error(err)
	}
	for _, k := range keys {
		if k == name {
			t.Errorf("snapshot %s is left", k)
		}
	}
	if out := ctr(t, "tasks", "ls", "-q"); strings.Contains(out, name) {
		t.Errorf("task %s is left", name)
	}
}

// ctr is containerd's own client, for what bottle has no call for.
func ctr(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(ctx(t), "ctr", args...)
	cmd.Env = os.Environ()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("ctr %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
