package bottle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/session"
	"github.com/bot-bottle/bottle/teardown"
)

// Leftovers are the objects on this host that belong to one bottle.
type Leftovers = teardown.Leftovers

// Stop ends a bottle's agent and keeps the bottle: the agent's processes get SIGTERM, and
// what is left of them after grace is killed. Then the proxy ends. The output and the exit
// code of a held session are stored. killed reports whether the grace period was too
// short. A bottle that does not run is not an error. The memory of a suspended one is dropped.
func (e *Engine) Stop(ctx context.Context, name string, grace time.Duration) (killed bool, err error) {
	running, err := e.Running(ctx, name)
	if err != nil {
		return false, err
	}
	if e.rt.Suspended(name) {
		if err := e.dropSuspended(ctx, name); err != nil {
			return false, err
		}
	} else if running {
		defer func() { err = auditEnd(e.cfg.Audit, name, "stopped", err) }()
		if killed, err = e.sessions.End(ctx, name, grace); err != nil {
			return killed, err
		}
	}
	if killed {
		grace = 0
	}
	forced, err := e.rt.Stop(ctx, name, grace)
	if err != nil {
		return killed || forced, err
	}
	// Afterwards, because what the agent does at its end may need the proxy.
	for _, id := range []string{names.Proxy(name), names.Front(name)} {
		_, serr := e.rt.Stop(ctx, id, 0)
		err = errors.Join(err, serr)
	}
	return killed || forced, err
}

// settleGrace is how long processes that a session has left behind may take to end.
const settleGrace = time.Second

// Settle waits until a bottle's held session has ended, stores its output and exit code
// and stops the sandbox and the proxy, which would otherwise wait for nothing. It returns
// when it has, or when the bottle is removed or ctx ends.
func (e *Engine) Settle(ctx context.Context, name string) error {
	bottle, err := e.teardown.Identify(name)
	if err != nil {
		return err
	}
	return e.settle(ctx, bottle)
}

// settle checks that the name is still the bottle's. It may belong to a later one as soon
// as the bottle is removed, which happens at the end of its session.
func (e *Engine) settle(ctx context.Context, bottle teardown.Identity) error {
	if err := checkIdentity(e.teardown, bottle); err != nil {
		return err
	}
	if _, err := e.sessions.WaitFirst(ctx, bottle.Name); err != nil {
		return err
	}
	if err := checkIdentity(e.teardown, bottle); err != nil {
		return err
	}
	_, err := e.Stop(ctx, bottle.Name, settleGrace)
	return err
}

// checkIdentity returns an error that wraps session.ErrNotRunning if a bottle was removed.
func checkIdentity(t *teardown.Manager, bottle teardown.Identity) error {
	now, err := t.Identify(bottle.Name)
	if err == nil && !bottle.Is(now) {
		err = fmt.Errorf("%s: %w", bottle.Name, session.ErrNotRunning)
	}
	return err
}

// Remove removes everything that belongs to a bottle's name, whether the bottle is
// running, stopped or incomplete. It is idempotent, is not cancelled with ctx, continues
// after errors and returns all of them. It never removes a bottle that was launched under
// the name after the call.
func (e *Engine) Remove(ctx context.Context, name string) error {
	return e.teardown.RemoveName(ctx, name)
}

// FindLeftovers returns everything on this host that has a bottle's name: objects of
// running bottles and of those that a crash left incomplete. It changes nothing.
func (e *Engine) FindLeftovers(ctx context.Context) ([]Leftovers, error) {
	found, err := e.teardown.Find(ctx, teardown.DyingTime)
	return slices.DeleteFunc(found, func(l Leftovers) bool { return !e.cfg.mayRemove(l.Name) }), err
}

// RemoveLeftovers removes the bottles that FindLeftovers has found, but none that another
// process is launching, and no later bottle that has the name of one. With the last bottle
// it removes what the networks share. It continues after errors; the error contains each
// of them.
func (e *Engine) RemoveLeftovers(ctx context.Context, leftovers []Leftovers) error {
	return e.teardown.RemoveLeftovers(ctx, leftovers)
}

// Forget removes what makes later launches faster: the next plan checks this host completely, and
// the next launch writes the programs that bottles share.
func (e *Engine) Forget() error { return e.teardown.Forget() }
