package bottle

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/session"
)

// A removal must not touch a bottle that was launched under the name after the removal
// began. In each of these tests another process removes the bottle at a given point of
// the first removal, and a new bottle gets the pinned name before that continues.

func pinnedPlan(t *testing.T, e *Engine) *plan.Plan {
	t.Helper()
	p := *prepare(t, e, testSpec(t, simpleManifest))
	p.Pinned = true
	return &p
}

func mustLaunch(t *testing.T, e *Engine, p *plan.Plan) *Bottle {
	t.Helper()
	b, err := e.Launch(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// wantComplete verifies that every part of a bottle still exists and works.
func wantComplete(t *testing.T, b *Bottle) {
	t.Helper()
	if b == nil {
		t.Fatal("no new bottle")
	}
	// A refusal shows that the agent, the networks and the proxy work.
	out, code := output(t, b.e, b.Name, "sh", "-c", "curl -s -o /dev/null -w '%{http_code}' http://refused.test/")
	if code != 0 || out != "403" {
		t.Errorf("request of the new bottle: %q, exit %d", out, code)
	}
	for _, dir := range []string{b.e.dir(b.Name), b.e.stateDir(b.Name)} {
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
	}
	if now, err := b.e.teardown.Identify(b.Name); err != nil || !now.Is(b.self) {
		t.Errorf("identity of the new bottle: %v", err)
	}
	keys, err := b.e.rt.Snapshots(t.Context())
	if err != nil || !slices.Contains(keys, b.Name) {
		t.Errorf("snapshots %v, %v", keys, err)
	}
}

// replaced removes the bottle of a name and launches a new one under it. It may be called
// in any goroutine.
func replaced(t *testing.T, e *Engine, p *plan.Plan) *Bottle {
	t.Helper()
	if err := e.Remove(context.WithoutCancel(t.Context()), p.Name); err != nil {
		t.Error(err)
	}
	b, err := e.Launch(t.Context(), p)
	if err != nil {
		t.Error(err)
	}
	return b
}

// TestRemoveReplaced removes a bottle that is replaced after the removal was requested.
func TestRemoveReplaced(t *testing.T) {
	for name, removal := range map[string]func(*Engine, *Bottle, []Leftovers) error{
		"by name":      func(e *Engine, b *Bottle, _ []Leftovers) error { return e.Remove(context.Background(), b.Name) },
		"of a session": func(_ *Engine, b *Bottle, _ []Leftovers) error { return b.Remove(context.Background()) },
		"of leftovers": func(e *Engine, _ *Bottle, l []Leftovers) error { return e.RemoveLeftovers(context.Background(), l) },
	} {
		t.Run(name, func(t *testing.T) {
			leakcheck.Check(t)
			e, other := openEngine(t), openEngine(t)
			p := pinnedPlan(t, e)
			first := mustLaunch(t, e, p)
			found, err := e.FindLeftovers(t.Context())
			if err != nil || len(found) != 1 {
				t.Fatalf("found %v, %v", found, err)
			}
			var second *Bottle
			defer setHooks(e, testHooks{removal: func(point string) {
				if point == "remove" {
					second = replaced(t, other, p)
				}
			}})()
			if err := removal(e, first, found); err != nil {
				t.Error(err)
			}
			wantComplete(t, second)
			// The control: a removal requested now removes the bottle.
			if err := other.Remove(t.Context(), p.Name); err != nil {
				t.Error(err)
			}
			if found, err := other.FindLeftovers(t.Context()); err != nil || len(found) != 0 {
				t.Errorf("left after the control: %v, %v", found, err)
			}
		})
	}
}

// TestRemoveReplacedDuringWait removes a bottle while another process removes it, and
// continues when the name has a new bottle.
func TestRemoveReplacedDuringWait(t *testing.T) {
	leakcheck.Check(t)
	e, other := openEngine(t), openEngine(t)
	p := pinnedPlan(t, e)
	mustLaunch(t, e, p)
	held, waits, removed := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	defer setHooks(other, testHooks{removal: func(point string) {
		if point == "removing" {
			close(held)
			<-waits
		}
	}})()
	var second *Bottle
	defer setHooks(e, testHooks{removal: func(point string) {
		if point != "wait for removal" {
			return
		}
		close(waits)
		if err := <-removed; err != nil {
			t.Error(err)
		}
		second = mustLaunch(t, openEngine(t), p)
	}})()
	go func() { removed <- other.Remove(context.Background(), p.Name) }()
	<-held
	if err := e.Remove(t.Context(), p.Name); err != nil {
		t.Error(err)
	}
	wantComplete(t, second)
	remove(t, second)
}

// TestLaunchReplaced removes a bottle in each step of its launch and launches another one
// under its name. The first launch fails and its undo leaves the new bottle alone.
func TestLaunchReplaced(t *testing.T) {
	e, other := openEngine(t), openEngine(t)
	p := pinnedPlan(t, e)
	for _, step := range launchSteps(t, e, p) {
		for _, after := range []bool{false, true} {
			if step == "claim name" {
				continue // before it there is no bottle, and afterwards no other step runs
			}
			t.Run(step+map[bool]string{false: "/before", true: "/after"}[after], func(t *testing.T) {
				leakcheck.Check(t)
				var second *Bottle
				defer setHooks(e, testHooks{step: oneByOne(step, after, func() { second = replaced(t, other, p) })})()
				if b, err := e.Launch(t.Context(), p); err == nil {
					// The launch ended with this step.
					remove(t, b)
				}
				wantComplete(t, second)
				remove(t, second)
			})
		}
	}
}

// TestClaimReplaced removes a bottle when its name has just been claimed, and launches
// another one under it. The first launch fails and leaves the new bottle alone.
func TestClaimReplaced(t *testing.T) {
	leakcheck.Check(t)
	e, other := openEngine(t), openEngine(t)
	p := pinnedPlan(t, e)
	var second *Bottle
	defer setHooks(e, testHooks{removal: func(point string) {
		if point == "claimed" {
			second = replaced(t, other, p)
		}
	}})()
	if b, err := e.Launch(t.Context(), p); err == nil {
		t.Errorf("%s was launched twice", b.Name)
	}
	wantComplete(t, second)
	remove(t, second)
}

// oneByOne returns a hook that lets one step of a launch run at a time, until it has
// called fn before or after one of them.
func oneByOne(step string, after bool, fn func()) func(string, bool) error {
	turn, called := make(chan struct{}, 1), make(chan struct{})
	turn <- struct{}{}
	return func(s string, done bool) error {
		if !done {
			select {
			case <-turn:
			case <-called:
				return nil
			}
		}
		switch {
		case s == step && done == after:
			fn()
			close(called)
		case done:
			select {
			case turn <- struct{}{}:
			case <-called:
			}
		}
		return nil
	}
}

// TestSettleReplaced: who waits for the end of a bottle's session, to stop its sandbox,
// leaves a later bottle of the name alone.
func TestSettleReplaced(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	p := pinnedPlan(t, e)
	b := mustLaunch(t, e, p)
	settled := make(chan error, 1)
	go func() { settled <- b.Settle(t.Context()) }()
	later := replaced(t, e, p)
	if err := <-settled; !errors.Is(err, session.ErrNotRunning) && !errors.Is(err, session.ErrNone) {
		t.Errorf("waiting for a bottle that is replaced: %v", err)
	}
	if err := b.Settle(t.Context()); !errors.Is(err, session.ErrNotRunning) {
		t.Errorf("after it was replaced: %v", err)
	}
	wantComplete(t, later)
	remove(t, later)
}
