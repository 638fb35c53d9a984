package bottle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

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
	if err := e.proxies.markGoing(name); err != nil {
		return err
	}
	// All at once: a task loses its links while it is being ended, and the
	// network's rules go only after the links. What fails does not keep the
	// rest: cleanup finds what stays.
	parts := []struct {
		step string
		fn   func() error
	}{
		{"remove agent", func() error { return e.rt.Remove(ctx, name) }},
		{"remove proxy", func() error { return e.rt.Remove(ctx, name+runtime.ProxySuffix) }},
		{"remove networks", func() error { return e.net.Remove(ctx, e.dir(name)) }},
	}
	errs := make([]error, len(parts))
	var wg sync.WaitGroup
	for i, p := range parts {
		wg.Go(func() {
			defer t.begin(p.step)()
			errs[i] = p.fn()
		})
	}
	wg.Wait()
	err := errors.Join(errs...)
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
	b.relay.close()
	defer b.relay.wait()
	return b.e.remove(ctx, b.Name, b.Timings)
}
