package runtime_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/bot-bottle/bottle/internal/hosttask"
	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/runtime"
)

// runscCalls is the program that answers the shim's calls, for one sandbox.
type runscCalls struct {
	t                *testing.T
	c                *runtime.Client
	name, root       string
	program, runscLn string
	task             *runtime.Task
}

func newRunscCalls(t *testing.T) *runscCalls {
	t.Helper()
	state := t.TempDir()
	r := &runscCalls{t: t, name: "claude-bottle-test-calls"}
	dir := filepath.Join(state, r.name)
	r.program, r.runscLn = filepath.Join(dir, "runsc-calls"), filepath.Join(dir, "runsc")
	r.c = connectConfig(t, func(cfg *runtime.Config) {
		cfg.Shim, cfg.Runsc, cfg.StateDir = labtest.Program(t), labtest.Embedded(t, "runsc"), state
	})
	r.root = "--root=" + filepath.Join(r.c.Dir(r.name), "runsc", r.c.Namespace())
	r.task = created(t, r.c, agentConfig(t, r.c, r.name, runtime.RuntimeRunsc))
	return r
}

func (r *runscCalls) call(program string, args ...string) (out string, code int) {
	r.t.Helper()
	cmd := exec.CommandContext(ctx(r.t), program, append([]string{r.root, "--log-format=json"}, args...)...)
	data, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.t.Error(err)
	}
	return string(data), cmd.ProcessState.ExitCode()
}

// alone calls the program while it cannot execute runsc.
func (r *runscCalls) alone(args ...string) (out string, code int) {
	r.t.Helper()
	target, err := os.Readlink(r.runscLn)
	must(r.t, err)
	must(r.t, os.Remove(r.runscLn))
	defer func() { must(r.t, os.Symlink(target, r.runscLn)) }()
	return r.call(r.program, args...)
}

// state compares the state that the program prints with runsc's.
func (r *runscCalls) state(want string) {
	r.t.Helper()
	var got, expected map[string]any
	out, _ := r.alone("state", r.name)
	must(r.t, json.Unmarshal([]byte(out), &got))
	out, _ = r.call("runsc", "state", r.name)
	must(r.t, json.Unmarshal([]byte(out), &expected))
	delete(got, "ociVersion")
	delete(expected, "ociVersion")
	if got["status"] != want || !reflect.DeepEqual(got, expected) {
		r.t.Errorf("state %v, want %s, and runsc says %v", got, want, expected)
	}
}

// TestShimProgram: containerd runs the same program as the sandbox's shim, which executes gVisor's
// shim without an address for events, in the container's own directory on disk.
func TestShimProgram(t *testing.T) {
	leakcheck.Check(t)
	r := newRunscCalls(t)
	out, err := exec.CommandContext(ctx(t), "ctr", "--namespace", r.c.Namespace(), "containers", "info", r.name).Output()
	must(t, err)
	var record struct{ Runtime struct{ Name string } }
	must(t, json.Unmarshal(out, &record))
	if record.Runtime.Name != r.program {
		t.Errorf("shim %s, want %s", record.Runtime.Name, r.program)
	}
	sandbox, ok := hosttask.ProcessOf(r.task.PID())
	if !ok {
		t.Fatal("the sandbox has ended")
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", sandbox.Parent))
	must(t, err)
	if strings.Contains(string(env), "TTRPC_ADDRESS=") {
		t.Errorf("environment of the shim: %q", env)
	}
}

// TestRunscCalls compares the program that answers the shim's calls with runsc itself, on a
// sandbox in all its states, and at its end.
func TestRunscCalls(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(r *runscCalls) error
		want string // output of a wait
		code int    // of the wait
	}{
		"signal": {
			func(r *runscCalls) error { return r.c.Signal(ctx(r.t), r.name, syscall.SIGTERM) },
			`{"id":"claude-bottle-test-calls","exitStatus":143}` + "\n", 0,
		},
		"kill": {
			func(r *runscCalls) error {
				if out, code := r.alone("kill", "--all", r.name, "9"); out != "" || code != 0 {
					return errors.New("kill: " + out)
				}
				return nil
			},
			`{"id":"claude-bottle-test-calls","exitStatus":137}` + "\n", 0,
		},
		"killed sandbox": {
			func(r *runscCalls) error { return syscall.Kill(r.task.PID(), syscall.SIGKILL) },
			"", 128,
		},
	} {
		t.Run(name, func(t *testing.T) {
			leakcheck.Check(t)
			r := newRunscCalls(t)
			r.state("created")
			if out, code := r.alone("list"); code != 128 || out != "" {
				t.Errorf("without runsc, list: %q, code %d", out, code)
			}
			if out, code := r.call(r.program, "list"); code != 0 || !strings.Contains(out, r.name) {
				t.Errorf("list, which runsc answers: %q, code %d", out, code)
			}
			must(t, r.task.Start(ctx(t)))
			r.state("running")
			must(t, r.c.Pause(ctx(t), r.name))
			r.state("paused")
			must(t, r.c.Unpause(ctx(t), r.name))
			wait := make(chan [2]any)
			for _, program := range []string{r.program, "runsc"} {
				go func() {
					out, code := r.call(program, "wait", r.name)
					wait <- [2]any{out, code}
				}()
			}
			r.state("running")
			must(t, c.end(r))
			for range 2 {
				if got := <-wait; got != [2]any{c.want, c.code} {
					t.Errorf("wait: %q", got)
				}
			}
			r.state("stopped")
			for _, program := range []string{r.program, "runsc"} {
				if _, code := r.call(program, "kill", "--all", r.name, "9"); code != 128 {
					t.Errorf("%s: kill of a sandbox that has ended: code %d", program, code)
				}
			}
		})
	}
}
