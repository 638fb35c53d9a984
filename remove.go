package bottle

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/bot-bottle/bottle/runtime"
)

// Remove takes away everything that belongs to a bottle's name, running or not,
// whole or half made. It is idempotent, runs to its end whatever becomes of
// ctx, goes on past failures and returns them all.
func (e *Engine) Remove(ctx context.Context, name string) error {
	ctx, cancel := detached(ctx)
	defer cancel()
	return e.remove(ctx, name, &Timings{})
}

func (e *Engine) remove(ctx context.Context, name string, t *Timings) error {
	defer t.begin("teardown")()
	// Both tasks at once, and then the network they used. A failed task does
	// not keep the rest: cleanup finds what stays.
	var g errgroup.Group
	var errs [2]error
	for i, id := range []string{name, name + runtime.ProxySuffix} {
		g.Go(func() error {
			defer t.begin("remove " + [2]string{"agent", "proxy"}[i])()
			errs[i] = e.rt.Remove(ctx, id)
			return nil
		})
	}
	_ = g.Wait() // errors are kept in errs
	end := t.begin("remove networks")
	nerr := e.net.Remove(ctx, e.dir(name))
	end()
	err := errors.Join(errs[0], errs[1], nerr)
	if err != nil {
		// The folder stays: it is by its name that cleanup finds the rest.
		return err
	}
	return e.removeFolders(name)
}

// removeFolders removes a bottle's folders, and those above them that are empty
// now.
func (e *Engine) removeFolders(name string) error {
	err := errors.Join(os.RemoveAll(e.stateDir(name)), os.RemoveAll(e.dir(name)))
	if err != nil {
		return fmt.Errorf("remove the folders of %s: %w", name, err)
	}
	e.removeEmpty()
	return nil
}

// removeEmpty removes the folders that all bottles share, which fails while one
// is there, as it should.
func (e *Engine) removeEmpty() {
	for _, d := range []string{e.dir(""), e.cfg.RunDir, e.stateDir(""), e.cfg.StateDir} {
		_ = os.Remove(d)
	}
}

// Remove ends the bottle: agent and proxy, networks, folders.
func (b *Bottle) Remove(ctx context.Context) error {
	ctx, cancel := detached(ctx)
	defer cancel()
	return b.e.remove(ctx, b.Name, b.Timings)
}
