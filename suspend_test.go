package bottle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/runtime"
	"github.com/bot-bottle/bottle/session"
	"github.com/bot-bottle/bottle/workspace"
)

// memoryKillEnv makes the test program one that is killed after a step of what it does with a
// bottle's memory.
const memoryKillEnv = "BOTTLE_TEST_MEMORY_KILL"

// memoryKill is such a kill.
type memoryKill struct{ Operation, Bottle, Step string }

// memoryChild does the operation. It returns only if it was not killed.
func memoryChild(text string) int {
	var k memoryKill
	err := json.Unmarshal([]byte(text), &k)
	ctx := context.Background()
	cfg := ConfigFromEnv(os.Getenv)
	cfg.Program = os.Getenv("BOTTLE_TEST_PROGRAM")
	e, oerr := Open(ctx, cfg)
	if err = errors.Join(err, oerr); err == nil {
		e.hooks.step = func(step string, done bool) error {
			if step == k.Step && done {
				return syscall.Kill(os.Getpid(), syscall.SIGKILL)
			}
			return nil
		}
		err = memoryOperations[k.Operation](ctx, e, k.Bottle)
	}
	fmt.Fprintln(os.Stderr, "not killed:", err)
	return 1
}

var memoryOperations = map[string]func(context.Context, *Engine, string) error{
	"suspend": func(ctx context.Context, e *Engine, name string) error { _, err := e.Suspend(ctx, name); return err },
	"fork":    func(ctx context.Context, e *Engine, name string) error { _, err := e.Fork(ctx, name, 2); return err },
	"resume":  func(ctx context.Context, e *Engine, name string) error { _, err := e.Resume(ctx, name); return err },
}

// killMemory runs an operation in a process that is killed after a step.
func killMemory(t *testing.T, k memoryKill) {
	t.Helper()
	data, err := json.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), memoryKillEnv+"="+string(data), "BOTTLE_TEST_PROGRAM="+labtest.Program(t))
	out, err := cmd.CombinedOutput()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
		t.Fatalf("%+v: %v: %s", k, err, out)
	}
}

// counter is an agent that counts in its memory, and writes the number to its workspace.
const counter = `n=0; while sleep 0.02; do n=$((n+1)); echo $n >next; mv next count; done`

// launchCounter launches a bottle whose held session counts.
func launchCounter(t *testing.T, e *Engine) *Bottle {
	t.Helper()
	b := launchWork(t, e, workSpec(t, e, plan.Runsc, ""))
	if err := e.sessions.Start(t.Context(), b.Name, session.Config{Command: []string{"sh", "-c", counter}}); err != nil {
		t.Fatal(err)
	}
	return b
}

// counts waits until an agent has counted beyond n, and returns the number.
func counts(t *testing.T, e *Engine, name string, n int) int {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		now, err := strconv.Atoi(strings.TrimSpace(in(t, e, name, "until cat count 2>/dev/null; do sleep 0.01; done")))
		if err != nil || time.Now().After(end) {
			t.Fatalf("%s counts no further than %d, %v", name, n, err)
		}
		if now > n {
			return now
		}
	}
}

// TestSuspendKilled kills suspensions and resumptions after each of their steps: resume then
// continues the agent where it was, and never where it had been before. At the end nothing
// is left.
func TestSuspendKilled(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	b := launchCounter(t, e)
	n := counts(t, e, b.Name, 0)
	resume := func() {
		t.Helper()
		if _, err := e.Resume(t.Context(), b.Name); err != nil {
			t.Fatal(err)
		}
		n = counts(t, e, b.Name, n)
		if _, err := os.Lstat(e.rt.MemoryDir(b.Name)); !errors.Is(err, fs.ErrNotExist) || e.IsSuspended(b.Name) {
			t.Errorf("the image of a running bottle: %v", err)
		}
	}
	for _, step := range []string{"pause", "save memory", "record memory", "end sandbox"} {
		killMemory(t, memoryKill{"suspend", b.Name, step})
		list, err := e.List(t.Context(), false)
		want := map[bool]string{true: statusSuspended, false: "paused"}[e.IsSuspended(b.Name)]
		if err != nil || len(list) != 1 || list[0].Status != want {
			t.Errorf("after %s: %+v, %v; want %s", step, list, err, want)
		}
		resume()
	}
	if _, err := e.Suspend(t.Context(), b.Name); err != nil {
		t.Fatal(err)
	}
	for _, step := range []string{"remove sandbox", "reopen network", "resume proxy", "restore sandbox"} {
		killMemory(t, memoryKill{"resume", b.Name, step})
	}
	// It runs, and what it does from now on is not lost.
	count := filepath.Join(e.teardown.WorkMount(b.Name), workspace.Files, "count")
	for end, before := time.Now().Add(time.Minute), n; n <= before+10; time.Sleep(10 * time.Millisecond) {
		data, _ := os.ReadFile(count) // it is being replaced
		if now, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil {
			n = now
		}
		if time.Now().After(end) {
			t.Fatal("the restored agent does not count")
		}
	}
	resume()
}

// TestForkKilled kills forks after each of their steps: resume lets a source continue that was
// left paused, cleanup removes what is left of the forks, and another fork succeeds.
func TestForkKilled(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	b := launchCounter(t, e)
	n := counts(t, e, b.Name, 0)
	removeForks := func() {
		t.Helper()
		for _, fork := range []string{b.Name + "-f1", b.Name + "-f2"} {
			if err := errors.Join(e.Remove(t.Context(), fork), discard(e, fork)); err != nil {
				t.Error(err)
			}
		}
	}
	defer removeForks()
	for _, step := range []string{"pause source", "save source", "copy source", "restore agent"} {
		killMemory(t, memoryKill{"fork", b.Name, step})
		if paused, err := e.rt.Paused(t.Context(), b.Name); err != nil || paused != (step != "restore agent") && step != "copy source" {
			t.Errorf("after %s: paused %v, %v", step, paused, err)
		}
		if _, err := os.Lstat(e.rt.MemoryDir(b.Name)); err == nil || step == "pause source" {
			if _, err := e.Resume(t.Context(), b.Name); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Lstat(e.rt.MemoryDir(b.Name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after %s the image is left: %v", step, err)
		}
		n = counts(t, e, b.Name, n)
		removeForks()
	}
	// Of forks that fail there is nothing, and the source runs on.
	for _, step := range []string{"save source", "restore agent"} {
		restore := setHooks(e, testHooks{step: func(s string, done bool) error {
			if s == step && done {
				return errInjected
			}
			return nil
		}})
		if _, err := e.Fork(t.Context(), b.Name, 2); !errors.Is(err, errInjected) {
			t.Errorf("%s: %v", step, err)
		}
		restore()
		n = counts(t, e, b.Name, n)
		list, err := e.List(t.Context(), true)
		if err != nil || len(list) != 1 {
			t.Errorf("after %s: %+v, %v", step, list, err)
		}
	}
	if _, err := e.Fork(t.Context(), b.Name, 1); err != nil {
		t.Fatal(err)
	}
	counts(t, e, b.Name+"-f1", n)
}

// TestSuspendImage: a memory image is not used for a sandbox of another program or another
// container, and no image is written that the host has no memory for. The bottle is as
// before.
func TestSuspendImage(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t, func(cfg *Config) {
		path := cfg.Program
		cfg.Guest = func() (io.ReadCloser, error) { return os.Open(path) }
	})
	b := launchCounter(t, e)
	n := counts(t, e, b.Name, 0)
	for _, step := range []string{"save memory", "record memory"} {
		defer setHooks(e, testHooks{step: func(s string, done bool) error {
			if s == step && done {
				return errInjected
			}
			return nil
		}})()
		if _, err := e.Suspend(t.Context(), b.Name); !errors.Is(err, errInjected) {
			t.Errorf("%s: %v", step, err)
		}
		e.hooks = testHooks{}
		n = counts(t, e, b.Name, n)
	}
	if _, err := e.Suspend(t.Context(), b.Name); err != nil {
		t.Fatal(err)
	}
	// The guest program in place of an update of any of them.
	program := filepath.Join(e.stateDir(b.Name), "guest")
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, append(data, 0), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Resume(t.Context(), b.Name); !errors.Is(err, runtime.ErrWrongImage) || !e.IsSuspended(b.Name) {
		t.Errorf("resume with another program: %v", err)
	}
	if err := os.WriteFile(program, data, 0o755); err != nil {
		t.Fatal(err)
	}
	defer setHooks(e, testHooks{step: func(s string, done bool) error {
		if s == "restore sandbox" && done {
			return errInjected
		}
		return nil
	}})()
	if _, err := e.Resume(t.Context(), b.Name); !errors.Is(err, errInjected) || !e.IsSuspended(b.Name) {
		t.Errorf("a resume that fails: %v", err)
	}
}
