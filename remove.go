package bottle

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/internal/shareddir"
	"github.com/bot-bottle/bottle/netns"
)

// Remove removes everything that belongs to a bottle's name, whether the bottle is
// running, stopped or incomplete. It is idempotent, is not cancelled with ctx, continues
// after errors and returns all of them.
func (e *Engine) Remove(ctx context.Context, name string) error {
	ctx, cancel := detached(ctx)
	defer cancel()
	return e.remove(ctx, name, &Timings{})
}

func (e *Engine) remove(ctx context.Context, name string, t *Timings) error {
	defer t.begin("remove")()
	if err := e.proxies.MarkRemoving(ctx, name); err != nil {
		return err
	}
	// Concurrently: a task can lose its links while it is being killed, and the network's
	// rules are removed after the links. An error does not stop the other parts, and
	// cleanup finds what is left.
	parts := []struct {
		step string
		fn   func() error
	}{
		{"remove agent", func() error { return e.rt.Remove(ctx, name) }},
		{"remove proxy", func() error { return e.rt.Remove(ctx, names.Proxy(name)) }},
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
		// The directory stays, because cleanup finds the rest by its name.
		return err
	}
	return e.removeDirs(name)
}

// removeDirs removes a bottle's directories, and their parents if they are empty now.
func (e *Engine) removeDirs(name string) error {
	err := errors.Join(os.RemoveAll(e.stateDir(name)), os.RemoveAll(e.dir(name)))
	if err != nil {
		return fmt.Errorf("remove directories of %s: %w", name, err)
	}
	e.removeEmpty()
	return nil
}

// removeEmpty removes the directories that all bottles share, unless a bottle is left in
// them.
func (e *Engine) removeEmpty() {
	shareddir.Prune(e.dir(""), e.cfg.RunDir, e.stateDir(""), e.cfg.StateDir)
}

// Remove removes the bottle: agent and proxy, networks, directories.
func (b *Bottle) Remove(ctx context.Context) error {
	ctx, cancel := detached(ctx)
	defer cancel()
	b.relay.close()
	defer b.relay.wait()
	return b.e.remove(ctx, b.Name, b.Timings)
}

// Leftovers are the objects on this host that belong to one bottle.
type Leftovers struct {
	Name       string   `json:"name"`
	Containers []string `json:"containers"` // each with its task's state
	Networks   []string `json:"networks"`
	Files      []string `json:"files"` // directories and snapshots
}

// FindLeftovers returns everything on this host that has a bottle's name: objects of
// running bottles and of those that a crash left incomplete. It changes nothing.
func (e *Engine) FindLeftovers(ctx context.Context) ([]Leftovers, error) {
	containers, err := e.rt.List(ctx, names.Prefix)
	if err != nil {
		return nil, err
	}
	snapshots, err := e.rt.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	runDirs, err := bottleDirs(e.dir(""))
	if err != nil {
		return nil, err
	}
	stateDirs, err := bottleDirs(e.stateDir(""))
	if err != nil {
		return nil, err
	}
	found := map[string]*Leftovers{}
	of := func(name string) *Leftovers {
		if found[name] == nil {
			found[name] = &Leftovers{Name: name, Containers: []string{}, Networks: []string{}, Files: []string{}}
		}
		return found[name]
	}
	for _, c := range containers {
		l := of(strings.TrimSuffix(c.ID, names.ProxySuffix))
		l.Containers = append(l.Containers, fmt.Sprintf("%s (%s)", c.ID, c.Status))
	}
	for _, s := range snapshots {
		l := of(strings.TrimSuffix(s, names.ProxySuffix))
		l.Files = append(l.Files, "snapshot "+s)
	}
	for _, name := range stateDirs {
		of(name).Files = append(of(name).Files, e.stateDir(name))
	}
	for _, name := range runDirs {
		dir, l := e.dir(name), of(name)
		l.Files = append(l.Files, dir)
		for _, p := range []string{netns.AgentPath(dir), netns.ProxyPath(dir)} {
			if _, err := os.Lstat(p); err == nil {
				l.Networks = append(l.Networks, p)
			}
		}
	}
	out := make([]Leftovers, 0, len(found))
	for _, name := range slices.Sorted(maps.Keys(found)) {
		out = append(out, *found[name])
	}
	return out, nil
}

// RemoveLeftovers removes what FindLeftovers has found, and with the last bottle what
// the networks share. It continues after errors; the error contains each of them.
func (e *Engine) RemoveLeftovers(ctx context.Context, leftovers []Leftovers) error {
	var errs []error
	for _, l := range leftovers {
		if err := e.Remove(ctx, l.Name); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", l.Name, err))
		}
	}
	return errors.Join(errs...)
}
