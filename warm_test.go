package bottle

import (
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/session"
)

const warmManifest = `
version: 1
bottles:
  dev:
    env: {LEVEL: debug, KEY: {from: KEY, inject: [allowed.test]}}
    egress: {allow: [allowed.test]}
agents:
  it: {bottle: dev, command: [sh, -c, "echo $$ >/tmp/pid; echo ready; exec sleep 1000"], prompt: Do it., pool: {size: 1, warm: true}}
  ends: {bottle: dev, command: [sh, -c, "echo first; echo last; exit 3"], pool: {size: 2, warm: true}}
  missing: {bottle: dev, command: [missing], pool: {size: 2, warm: true}}
`

// warmSpecs returns the spec with which agents are started ahead, and that of a run.
func warmSpecs(t *testing.T) (pool, run plan.Spec) {
	t.Helper()
	t.Setenv("TERM", "xterm")
	run = testSpec(t, warmManifest)
	run.Caller.Getenv = func(name string) (string, bool) {
		v, ok := map[string]string{"KEY": "ghp_" + strings.Repeat("0a", 18)}[name]
		return v, ok
	}
	pool = run
	pool.NamesOnly, pool.Forms, run.Terminal = true, true, true
	return pool, run
}

// endAgent ends the agent of warmManifest.
func endAgent(t *testing.T, e *Engine, name string) {
	t.Helper()
	out, code := output(t, e, name, "sh", "-c", "kill $(cat /tmp/pid)")
	// PID 1 ends the sandbox of an agent that nobody has claimed, possibly before this session.
	if code != 0 && code != 128+int(syscall.SIGKILL) {
		t.Fatalf("the agent is not ended: %q, code %d", out, code)
	}
}

// TestWarmSelection: a run uses an agent that was started ahead only if it would have started
// it in the same way. One that has ended is dead, and replaced.
func TestWarmSelection(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	pool, run := warmSpecs(t)
	names := fill(t, e, prepare(t, e, pool), 1)
	want := func(what string, s plan.Spec, name string) {
		t.Helper()
		if p := prepare(t, e, s); p.Prepared.Name != name {
			t.Errorf("%s: %+v, want %q", what, p.Prepared, name)
		}
	}
	change := func(f func(*plan.Spec)) plan.Spec {
		s := run
		f(&s)
		return s
	}
	want("the same run", run, names[0])
	want("more arguments", change(func(s *plan.Spec) { s.Args = []string{"x"} }), "")
	want("another value of the same form", change(func(s *plan.Spec) { s.Env = []string{"KEY=ghp_" + strings.Repeat("z9", 18)} }), names[0])
	want("a value of another form", change(func(s *plan.Spec) { s.Env = []string{"KEY=gho_" + strings.Repeat("z9", 18)} }), "")
	want("no terminal", change(func(s *plan.Spec) { s.Terminal = false }), "")
	for what, text := range map[string][2]string{
		"another prompt": {"Do it.", "Do that."}, "another literal": {"debug", "info"}, "another command": {"1000", "1001"},
	} {
		s := testSpec(t, strings.Replace(warmManifest, text[0], text[1], 1))
		s.Caller.Getenv, s.Terminal = run.Caller.Getenv, true
		p := prepare(t, e, s)
		p.Manifest = prepare(t, e, run).Manifest
		if got, err := e.Prepared(t.Context(), p); got != "" || err != nil {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
	t.Setenv("TERM", "dumb")
	want("another terminal", run, "")
	t.Setenv("TERM", "xterm")
	want("the same run again", run, names[0])

	p := prepare(t, e, run)
	endAgent(t, e, names[0])
	for running := true; running; time.Sleep(10 * time.Millisecond) {
		var err error
		if running, err = e.rt.RunningOnHost(t.Context(), names[0]); err != nil {
			t.Fatal(err)
		}
	}
	want("an agent that has ended", run, "")
	list, err := e.Pool(t.Context())
	if err != nil || len(list) != 1 || list[0].State != preparedDead || !list[0].Warm {
		t.Errorf("the pool: %+v, %v", list, err)
	}
	b, err := e.Launch(t.Context(), p) // which was planned before
	if err != nil {
		t.Fatal(err)
	}
	defer remove(t, b)
	if b.Name == names[0] {
		t.Error("an agent that has ended is used")
	}
	if next := fill(t, e, prepare(t, e, pool), 1); len(next) != 1 {
		t.Errorf("after a fill: %v", next)
	}
}

// TestWarmFaults: a failure at any step leaves no bottle that a run could use. An agent that
// ends at once, or cannot be run, is reported and not started again.
func TestWarmFaults(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	pool, run := warmSpecs(t)
	starts := 0
	failAt := func(step string, after bool) func() {
		return setHooks(e, testHooks{step: func(s string, done bool) error {
			if s == "start agent ahead" && !done {
				starts++
			}
			if s == step && done == after {
				return errInjected
			}
			return nil
		}})
	}
	ahead := prepare(t, e, pool)
	for _, after := range []bool{false, true} {
		restore := failAt("start agent ahead", after)
		if err := e.FillPool(t.Context(), ahead, 1); !errors.Is(err, errInjected) {
			t.Errorf("fill: %v", err)
		}
		restore()
		if left := poolNames(t, e); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
	for _, after := range []bool{false, true} {
		fill(t, e, ahead, 1)
		p := prepare(t, e, run)
		restore := failAt("claim agent", after)
		if b, err := e.Launch(t.Context(), p); !errors.Is(err, errInjected) || b != nil {
			t.Errorf("launch: %v, %v", b, err)
		}
		restore()
		if left := poolNames(t, e); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
	for agent, text := range map[string]string{"ends": "it has ended with exit code 3: last", "missing": "executable file not found"} {
		starts = 0
		restore := failAt("", false)
		s := pool
		s.Agent = agent
		err := e.FillPool(t.Context(), prepare(t, e, s), 2)
		restore()
		if err == nil || !strings.Contains(err.Error(), text) || starts != 1 {
			t.Errorf("%s: %v after %d starts", agent, err, starts)
		}
		if left := poolNames(t, e); len(left) > 0 {
			t.Errorf("left of %s: %v", agent, left)
		}
	}
	// One that ends after it was claimed and before the session: its exit code is the run's.
	fill(t, e, ahead, 1)
	b := claimOne(t, e, run)
	defer remove(t, b)
	endAgent(t, e, b.Name)
	var out strings.Builder
	s, err := b.Exec(t.Context(), session.Config{Terminal: true, Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	if code, err := s.Wait(); code != 128+15 || err != nil || !strings.Contains(out.String(), "ready") {
		t.Errorf("%d, %v, %q", code, err, out.String())
	}
	if slices.Contains(poolNames(t, e), b.Name) {
		t.Error("a claimed bottle is still in the pool")
	}
}
