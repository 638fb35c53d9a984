package teardown

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/bot-bottle/bottle/internal/filelock"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/internal/program"
	"github.com/bot-bottle/bottle/internal/proven"
	"github.com/bot-bottle/bottle/internal/scratch"
	"github.com/bot-bottle/bottle/internal/timing"
	"github.com/bot-bottle/bottle/internal/unmount"
	"github.com/bot-bottle/bottle/runtime"
	"github.com/bot-bottle/bottle/workspace"
)

// Remove removes everything that belongs to the bottle, whether it is running, stopped or
// incomplete. It is idempotent, is not cancelled with ctx, continues after errors and
// returns all of them. It succeeds if another process has removed the bottle, and never
// removes one that was launched under the name after Identify.
func (m *Manager) Remove(ctx context.Context, bottle Identity, t *timing.Timings) error {
	ctx, cancel := Detached(ctx)
	defer cancel()
	defer t.Begin("remove")()
	m.cfg.At("remove")
	name := bottle.Name
	if strings.HasPrefix(name, scratch.Prefix) {
		err := scratch.Remove(m.dir(name))
		m.Prune()
		return err
	}
	if bottle.dir == nil {
		return m.removeWithoutDir(ctx, name, t)
	}
	lock, err := m.hold(ctx, bottle)
	if lock == nil {
		return err
	}
	defer m.release(lock)
	return m.cfg.Removed(name, m.removeNamed(ctx, name, t))
}

// RemoveName is Remove for the bottle that has the name now.
func (m *Manager) RemoveName(ctx context.Context, name string) error {
	bottle, err := m.Identify(name)
	if err != nil {
		return err
	}
	return m.Remove(ctx, bottle, &timing.Timings{})
}

// removeWithoutDir removes what is left of a bottle whose directory is gone, for example
// after a reboot.
func (m *Manager) removeWithoutDir(ctx context.Context, name string, t *timing.Timings) error {
	lock, claimed, err := m.holdName(ctx, name)
	if err != nil {
		return err
	}
	defer m.release(lock)
	if !claimed {
		return fmt.Errorf("remove %s: %w by a later launch", name, runtime.ErrTaken)
	}
	return m.cfg.Removed(name, m.removeNamed(ctx, name, t))
}

// removeNamed removes everything that has the name. The caller holds the lock on it.
func (m *Manager) removeNamed(ctx context.Context, name string, t *timing.Timings) error {
	unfinished, err := m.unfinished(name)
	if err != nil {
		return err
	}
	r := removal{container: m.rt.Remove, own: func(context.Context) error { return nil }}
	if unfinished {
		r.container = m.rt.RemoveInterrupted
	}
	return m.removeHeld(ctx, name, r, t)
}

// removal is what differs between removals.
type removal struct {
	container func(ctx context.Context, id string) error
	own       func(context.Context) error // removes what no name leads to, after the rest
}

// removeHeld removes a bottle. The caller holds the lock on it.
func (m *Manager) removeHeld(ctx context.Context, name string, r removal, t *timing.Timings) error {
	m.cfg.At("removing")
	if err := m.proxies.MarkRemoving(ctx, name); err != nil {
		return err
	}
	// Concurrently: a task can lose its links while it is being killed, and the network's
	// rules are removed after the links. An error does not stop the other parts, and
	// cleanup finds what is left.
	parts := []struct {
		step string
		fn   func() error
	}{
		{"remove agent", func() error { return m.removeAgent(ctx, name, r.container) }},
		{"remove proxy", func() error { return r.container(ctx, names.Proxy(name)) }},
		{"remove front of proxy", func() error { return m.removeFront(ctx, name, r.container) }},
		{"remove networks", func() error { return m.net.Remove(ctx, m.dir(name)) }},
	}
	errs := make([]error, len(parts))
	var wg sync.WaitGroup
	for i, p := range parts {
		wg.Go(func() {
			defer t.Begin(p.step)()
			m.cfg.At(p.step)
			errs[i] = p.fn()
			m.cfg.At(p.step + " done")
		})
	}
	wg.Wait()
	if err := errors.Join(append(errs, r.own(ctx))...); err != nil {
		// The directory stays, because cleanup finds the rest by its name.
		return err
	}
	m.cfg.At("remove directories")
	err := m.removeDirs(ctx, name)
	m.cfg.At("remove directories done")
	return err
}

// removeFront removes the container in front of the proxy. Few bottles have one, and their
// directory shows it.
func (m *Manager) removeFront(ctx context.Context, name string, removeContainer func(context.Context, string) error) error {
	if _, err := os.Lstat(m.dir(name)); err == nil {
		if _, err := os.Lstat(m.proxies.FrontDir(name)); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	return removeContainer(ctx, names.Front(name))
}

// removeAgent removes the agent's task, and then unmounts its workspace, which is kept.
func (m *Manager) removeAgent(ctx context.Context, name string, removeContainer func(context.Context, string) error) error {
	// The disk works while the task is being removed.
	flushed := m.work.Flush(name, m.WorkMount(name))
	err := removeContainer(ctx, name)
	flushed()
	if err != nil {
		return err
	}
	return m.work.End(ctx, name, m.WorkMount(name))
}

// RemoveLeftovers removes the bottles that Find has found, but none that another
// process is launching, and no later bottle that has the name of one. With the last bottle
// it removes what the networks share. It continues after errors; the error contains each
// of them.
func (m *Manager) RemoveLeftovers(ctx context.Context, leftovers []Leftovers) error {
	var errs []error
	for _, l := range leftovers {
		if l.Launching {
			continue
		}
		bottle := l.self
		bottle.Name = l.Name
		err := m.Remove(ctx, bottle, &timing.Timings{})
		if bottle.dir == nil && errors.Is(err, runtime.ErrTaken) {
			continue // it was launched while Find was looking
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", l.Name, err))
		}
	}
	// A process may have been killed before it created, or after it removed, a bottle.
	errs = append(errs, m.net.Refresh(ctx))
	m.Prune()
	return errors.Join(errs...)
}

// Forget removes what makes later launches faster: the record of what launches have proven of this
// host, and the programs that bottles share.
func (m *Manager) Forget() error {
	err := errors.Join(proven.Forget(m.cfg.RunDir), program.Forget(m.cfg.StateDir))
	m.Prune()
	return err
}

// removedPrefix begins the name of a removed bottle's directory, which contains nothing
// that matters any more.
const removedPrefix = ".removed-"

// removeDirs removes a bottle's directories, and their parents if they are empty now.
// The caller must hold the lock on the bottle's removal.
func (m *Manager) removeDirs(ctx context.Context, name string) error {
	// Removing the directory would remove the files of a mounted workspace.
	if mounted, err := workspace.Mounted(m.WorkMount(name)); mounted || err != nil {
		return errors.Join(fmt.Errorf("remove directories of %s: its workspace is mounted", name), err)
	}
	err := errors.Join(os.RemoveAll(m.StateDir(name)), m.removeRunDir(ctx, name))
	if err != nil {
		return fmt.Errorf("remove directories of %s: %w", name, err)
	}
	m.Prune()
	return nil
}

// removeRunDir removes the bottle's directory on tmpfs in two steps. It is emptied under
// its name, because what cannot be removed, such as a pinned namespace, must be found
// again. Then it is renamed, which frees the name in one system call: a removal of the
// lock before the directory would let another process between the two.
func (m *Manager) removeRunDir(ctx context.Context, name string) error {
	dir := m.dir(name)
	// Package netns pins namespaces under this lock.
	pins, err := filelock.Open(ctx, dir, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer m.release(pins)
	if err := unmount.Below(dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, entry := range entries {
		if entry.Name() != removeLock {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, entry.Name())))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	removed := m.dir(removedPrefix + rand.Text())
	if err := os.Rename(dir, removed); err != nil {
		return err
	}
	return os.RemoveAll(removed)
}
