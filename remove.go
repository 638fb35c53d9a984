package bottle

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/internal/scratch"
	"github.com/bot-bottle/bottle/internal/unmount"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/runtime"
)

// Remove removes everything that belongs to a bottle's name, whether the bottle is
// running, stopped or incomplete. It is idempotent, is not cancelled with ctx, continues
// after errors and returns all of them. It never removes a bottle that was launched under
// the name after the call.
func (e *Engine) Remove(ctx context.Context, name string) error {
	id, err := e.identify(name)
	if err != nil {
		return err
	}
	return e.removeBottle(ctx, name, id)
}

func (e *Engine) removeBottle(ctx context.Context, name string, id identity) error {
	ctx, cancel := detached(ctx)
	defer cancel()
	return e.remove(ctx, name, id, &Timings{})
}

// remove removes the bottle that has the name and the identity. It succeeds if another
// process has removed it.
func (e *Engine) remove(ctx context.Context, name string, id identity, t *Timings) error {
	defer t.begin("remove")()
	e.hooks.at("remove")
	if strings.HasPrefix(name, scratch.Prefix) {
		err := scratch.Remove(e.dir(name))
		e.removeEmpty()
		return err
	}
	if id.dir == nil {
		return e.removeWithoutDir(ctx, name, t)
	}
	lock, err := e.hold(ctx, name, id)
	if lock == nil {
		return err
	}
	defer e.releaseRemoval(lock)
	return e.removeHeld(ctx, name, t)
}

// removeWithoutDir removes what is left of a bottle whose directory is gone, for example
// after a reboot.
func (e *Engine) removeWithoutDir(ctx context.Context, name string, t *Timings) error {
	lock, claimed, err := e.holdName(ctx, name)
	if err != nil {
		return err
	}
	defer e.releaseRemoval(lock)
	if !claimed {
		return fmt.Errorf("remove %s: %w by a later launch", name, runtime.ErrTaken)
	}
	return e.removeHeld(ctx, name, t)
}

// removeHeld removes everything that has the name. The caller holds the lock on it.
func (e *Engine) removeHeld(ctx context.Context, name string, t *Timings) error {
	e.hooks.at("removing")
	unfinished, err := e.unfinished(name)
	if err != nil {
		return err
	}
	removeContainer := e.rt.Remove
	if unfinished {
		removeContainer = e.rt.RemoveInterrupted
	}
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
		{"remove agent", func() error { return removeContainer(ctx, name) }},
		{"remove proxy", func() error { return removeContainer(ctx, names.Proxy(name)) }},
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
	if err := errors.Join(errs...); err != nil {
		// The directory stays, because cleanup finds the rest by its name.
		return err
	}
	return e.removeDirs(ctx, name)
}

// Remove removes the bottle: agent and proxy, networks, directories. It succeeds if
// another process has removed it.
func (b *Bottle) Remove(ctx context.Context) error {
	ctx, cancel := detached(ctx)
	defer cancel()
	b.relay.close()
	defer b.relay.wait()
	return b.e.remove(ctx, b.Name, b.self, b.Timings)
}

// Leftovers are the objects on this host that belong to one bottle.
type Leftovers struct {
	Name       string   `json:"name"`
	Containers []string `json:"containers"` // each with its task's state
	Networks   []string `json:"networks"`
	Files      []string `json:"files"` // directories, snapshots and mounts
	// Processes are those that no container accounts for, and their cgroups.
	Processes []string `json:"processes"`
	// Launching reports that another process is launching the bottle.
	Launching bool `json:"launching"`

	self identity
}

// FindLeftovers returns everything on this host that has a bottle's name: objects of
// running bottles and of those that a crash left incomplete. It changes nothing.
func (e *Engine) FindLeftovers(ctx context.Context) ([]Leftovers, error) {
	return e.findLeftovers(ctx, dyingTime)
}

// findLeftovers waits for at most the given time for processes that were just killed.
func (e *Engine) findLeftovers(ctx context.Context, wait time.Duration) ([]Leftovers, error) {
	// Directories first: what is found afterwards belongs to them, or to a later bottle.
	runDirs, err := bottleDirs(e.dir(""))
	if err != nil {
		return nil, err
	}
	ids := map[string]identity{}
	for _, name := range runDirs {
		if ids[name], err = e.identify(name); err != nil {
			return nil, err
		}
	}
	containers, err := e.rt.List(ctx, names.Prefix)
	if err != nil {
		return nil, err
	}
	snapshots, err := e.rt.Snapshots(ctx)
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
			found[name] = &Leftovers{
				Name: name, Containers: []string{}, Networks: []string{}, Files: []string{}, Processes: []string{}, self: ids[name],
			}
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
	if err := e.findOnHost(ctx, wait, of); err != nil {
		return nil, err
	}
	out := make([]Leftovers, 0, len(found))
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if found[name].Launching, err = e.launching(ctx, name, wait); err != nil {
			return nil, err
		}
		out = append(out, *found[name])
	}
	return out, nil
}

// findOnHost finds what neither containerd nor a directory shows: processes, cgroups,
// mounts, and the scratch directories of dead processes.
func (e *Engine) findOnHost(ctx context.Context, wait time.Duration, of func(name string) *Leftovers) error {
	strays, err := e.rt.Strays()
	if err != nil {
		return err
	}
	for name, list := range strays {
		// Where there are containers, they are shown with the state of their processes.
		if l := of(name); len(l.Containers) == 0 {
			l.Processes = append(l.Processes, list...)
		}
	}
	abandoned, err := scratch.Abandoned(ctx, e.dir(""), wait)
	if err != nil {
		return err
	}
	for _, dir := range abandoned {
		of(filepath.Base(dir)).Files = append(of(filepath.Base(dir)).Files, dir)
	}
	points, err := unmount.List(e.dir(""))
	if err != nil {
		return err
	}
	for _, p := range points {
		rel, err := filepath.Rel(e.dir(""), p)
		name, _, below := strings.Cut(rel, "/")
		if err != nil || !below || strings.HasPrefix(name, ".") {
			continue
		}
		if !slices.Contains(of(name).Networks, p) {
			of(name).Files = append(of(name).Files, "mount "+p)
		}
	}
	return nil
}

// RemoveLeftovers removes the bottles that FindLeftovers has found, but none that another
// process is launching, and no later bottle that has the name of one. With the last bottle
// it removes what the networks share. It continues after errors; the error contains each
// of them.
func (e *Engine) RemoveLeftovers(ctx context.Context, leftovers []Leftovers) error {
	var errs []error
	for _, l := range leftovers {
		if l.Launching {
			continue
		}
		if err := e.removeBottle(ctx, l.Name, l.self); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", l.Name, err))
		}
	}
	// A process may have been killed before it created, or after it removed, a bottle.
	errs = append(errs, e.net.Refresh(ctx))
	e.removeEmpty()
	return errors.Join(errs...)
}
