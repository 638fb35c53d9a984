package runtime_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/runtime"
)

// TestRemove removes agents in every state, and removes them again.
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
			forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
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

// TestConcurrentRemove: several processes may remove a bottle concurrently, such as
// `cleanup`, `rm`, and a `run` whose session the removal ends. Each removal succeeds,
// at whatever point the other one is.
func TestConcurrentRemove(t *testing.T) {
	const rounds = 10
	for round := range rounds {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
				started(t, c, cfg)
				proxy(t, c, cfg.Name+"-p")
				s, err := c.Exec(ctx(t), cfg.Name, runtime.SessionConfig{Args: []string{"sleep", "300"}, Stdout: io.Discard, Stderr: io.Discard})
				if err != nil {
					t.Fatal(err)
				}
				removeAll := func(c *runtime.Client) {
					for _, id := range []string{cfg.Name, cfg.Name + "-p" + runtime.ProxySuffix} {
						if err := c.Remove(context.Background(), id); err != nil {
							t.Errorf("remove %s: %v", id, err)
						}
					}
				}
				var wg sync.WaitGroup
				wg.Go(func() { // the process that runs the session
					if code, err := s.Wait(); err != nil || code != 137 {
						t.Errorf("the session: %d, %v", code, err)
					}
					removeAll(c)
				})
				for i := range 2 {
					other, err := runtime.Connect(ctx(t), config(filepath.Dir(filepath.Dir(c.Dir(cfg.Name)))))
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { must(t, other.Close()) })
					wg.Go(func() {
						// A different offset in each round, to meet every step.
						time.Sleep(time.Duration(i*round) * 15 * time.Millisecond)
						removeAll(other)
					})
				}
				wg.Wait()
				wantGone(t, c, cfg.Name)
				wantGone(t, c, cfg.Name+"-p"+runtime.ProxySuffix)
			})
		})
	}
}

// TestRemoveUnderSession: removing a bottle ends its open sessions.
func TestRemoveUnderSession(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
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
		if code, err := wait(t, s); code != 137 || err != nil || !s.Killed() || len(s.LimitsReached()) > 0 {
			t.Errorf("the session: %d, %v, killed %v, limits %v", code, err, s.Killed(), s.LimitsReached())
		}
		noSessions(t, c, cfg.Name)
	})
}

// TestSessionOfKilledTask: a session reports that its agent's task was killed, without
// messages of the runtime.
func TestSessionOfKilledTask(t *testing.T) {
	for _, terminal := range []bool{false, true} {
		t.Run(fmt.Sprintf("terminal %v", terminal), func(t *testing.T) {
			forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
				task := started(t, c, cfg)
				out := newWatched()
				sc := runtime.SessionConfig{Args: []string{"bash", "-c", "echo ready; exec sleep 300"}, Stdout: out, Terminal: terminal}
				if !terminal {
					sc.Stderr = out
				}
				s, err := c.Exec(ctx(t), cfg.Name, sc)
				if err != nil {
					t.Fatal(err)
				}
				out.await(t, "ready")
				must(t, syscall.Kill(task.PID(), syscall.SIGKILL))
				if code, err := wait(t, s); code != 137 || err != nil || !s.Killed() || len(s.LimitsReached()) > 0 {
					t.Errorf("%d, %v, killed %v, limits %v", code, err, s.Killed(), s.LimitsReached())
				}
				if got := strings.TrimSpace(out.text.String()); got != "ready" {
					t.Errorf("output %q", got)
				}
			})
		})
	}
}

// TestRemoveAfterKill removes an agent whose shim was killed.
func TestRemoveAfterKill(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		task := started(t, c, cfg)
		shim := parent(t, task.PID())
		must(t, syscall.Kill(shim, syscall.SIGKILL))
		remove(t, c, cfg.Name)
		wantGone(t, c, cfg.Name)
	})
}

// TestLongName uses the longest name for which containerd also accepts the proxy's
// name.
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

// TestTaken: creating an agent whose name is in use fails, leaves nothing behind, and
// does not touch the existing container.
func TestTaken(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		ctr(t, "containers", "create", image, cfg.Name)
		t.Cleanup(func() { ctr(t, "containers", "rm", cfg.Name) })
		rootfs, err := c.PrepareRootFS(ctx(t), cfg.Name+"-2", image, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { must(t, c.RemoveSnapshot(ctx(t), cfg.Name+"-2")) })
		if _, err := c.CreateAgent(ctx(t), cfg, rootfs); !errors.Is(err, runtime.ErrTaken) {
			t.Fatalf("name of an existing container: %v", err)
		}
		if got := ctr(t, "snapshots", "ls"); strings.Contains(got, cfg.Name+"-2") || !strings.Contains(got, cfg.Name) {
			t.Errorf("snapshots after the conflict:\n%s", got)
		}
		// It is not bottle's, so that no removal touches it.
		remove(t, c, cfg.Name)
		must(t, c.RemoveInterrupted(ctx(t), cfg.Name))
		ids, err := c.IDs(ctx(t))
		if err != nil || !ids[cfg.Name] {
			t.Errorf("the existing container is gone: %v, %v", ids, err)
		}
	})
}

// TestCreateFails: a failed create leaves nothing behind.
func TestCreateFails(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		cfg.Mounts = append(cfg.Mounts, runtime.Mount{Source: "/no/such/source", Target: "/mnt"})
		rootfs, err := c.PrepareRootFS(ctx(t), cfg.Name, image, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.CreateAgent(ctx(t), cfg, rootfs); err == nil {
			t.Error("create succeeded with a missing mount source")
		}
		wantGone(t, c, cfg.Name)
		must(t, c.Remove(ctx(t), cfg.Name))
	})
}

func wantListed(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig, status string) {
	t.Helper()
	list, err := c.List(ctx(t))
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
			t.Errorf("running task without a PID: %+v", l)
		}
		wantStray(t, c, cfg.Name, status != "none")
		return
	}
	t.Errorf("%s is not listed", cfg.Name)
}

// wantStray checks whether a bottle's processes and cgroups are found.
func wantStray(t *testing.T, c *runtime.Client, name string, want bool) {
	t.Helper()
	described, err := c.Strays(ctx(t))
	must(t, err)
	names, err := c.StrayNames()
	must(t, err)
	if names[name] != want || len(described[name]) > 0 != want {
		t.Errorf("processes of %s: name found %v, %q; want %v", name, names[name], described[name], want)
	}
}

func wantGone(t *testing.T, c *runtime.Client, name string) {
	t.Helper()
	wantStray(t, c, name, false)
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

// ctr runs containerd's command-line client, for operations that bottle does not have.
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
