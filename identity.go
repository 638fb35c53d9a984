package bottle

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/bot-bottle/bottle/internal/filelock"
	"github.com/bot-bottle/bottle/internal/shareddir"
	"github.com/bot-bottle/bottle/internal/unmount"
	"github.com/bot-bottle/bottle/runtime"
)

// A name can be used again as soon as its bottle is removed. Whoever removes a bottle
// must therefore not touch a later bottle of the same name: removals of a name take
// turns by a lock in the bottle's directory, and after the wait for it a removal
// continues only if the directory is still the one it started with. The directory is
// removed last, and only by the holder of the lock, so nobody can launch a bottle of
// the name meanwhile.

// identity distinguishes a bottle from others that have or had its name. It is the zero
// value if there was no directory of that name, for example after a crash and a reboot.
type identity struct {
	dir fs.FileInfo
	// id is random, because inode numbers may be used again. It is empty until claim has
	// written it, and for bottles of versions that did not.
	id string
}

func (i identity) is(other identity) bool {
	return i.dir != nil && other.dir != nil && os.SameFile(i.dir, other.dir) &&
		(i.id == other.id || i.id == "" || other.id == "")
}

// Files in a bottle's directory.
const (
	idFile     = "id"
	removeLock = "remove.lock"
)

// identify returns the identity of the bottle that has the name now.
func (e *Engine) identify(name string) (identity, error) {
	dir, err := os.Lstat(e.dir(name))
	if errors.Is(err, fs.ErrNotExist) {
		return identity{}, nil
	}
	if err != nil {
		return identity{}, fmt.Errorf("identify %s: %w", name, err)
	}
	id, err := os.ReadFile(filepath.Join(e.dir(name), idFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return identity{}, fmt.Errorf("identify %s: %w", name, err)
	}
	return identity{dir, string(id)}, nil
}

// hold waits for the lock on the removal of a bottle. It returns nil if the bottle is
// gone: removed by another process, and possibly replaced.
func (e *Engine) hold(ctx context.Context, name string, want identity) (*filelock.Lock, error) {
	lock, err := e.lockRemoval(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	now, err := e.identify(name)
	if err == nil && want.is(now) {
		return lock, nil
	}
	return nil, errors.Join(err, lock.Release())
}

// holdName waits for the lock on the removal of the bottle that has the name. If none
// has it, holdName claims it, as a launch does; then the caller must remove the directory.
func (e *Engine) holdName(ctx context.Context, name string) (lock *filelock.Lock, claimed bool, err error) {
	for {
		var mine identity
		err := shareddir.Mkdir(e.dir(name), 0o700)
		if err == nil {
			mine, err = e.identify(name)
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, false, fmt.Errorf("claim %s: %w", name, err)
		}
		lock, err := e.lockRemoval(ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // another process has removed the directory
		}
		if err != nil {
			return nil, false, err
		}
		now, err := e.identify(name)
		if err != nil {
			return nil, false, errors.Join(err, lock.Release())
		}
		return lock, mine.is(now), nil
	}
}

func (e *Engine) lockRemoval(ctx context.Context, name string) (*filelock.Lock, error) {
	lock, err := filelock.Create(ctx, filepath.Join(e.dir(name), removeLock), func() { e.hooks.at("wait for removal") })
	if err != nil {
		return nil, fmt.Errorf("lock removal of %s: %w", name, err)
	}
	return lock, nil
}

// releaseRemoval releases a lock. Everything that it protects is done by then.
func (e *Engine) releaseRemoval(lock *filelock.Lock) {
	if err := lock.Release(); err != nil {
		e.log.Error("release lock", "error", err)
	}
}

// removedPrefix begins the name of a removed bottle's directory, which contains nothing
// that matters any more.
const removedPrefix = ".removed-"

// removeDirs removes a bottle's directories, and their parents if they are empty now.
// The caller must hold the lock on the bottle's removal.
func (e *Engine) removeDirs(ctx context.Context, name string) error {
	err := errors.Join(os.RemoveAll(e.stateDir(name)), e.removeRunDir(ctx, name))
	if err != nil {
		return fmt.Errorf("remove directories of %s: %w", name, err)
	}
	e.removeEmpty()
	return nil
}

// removeRunDir removes the bottle's directory on tmpfs in two steps. It is emptied under
// its name, because what cannot be removed, such as a pinned namespace, must be found
// again. Then it is renamed, which frees the name in one system call: a removal of the
// lock before the directory would let another process between the two.
func (e *Engine) removeRunDir(ctx context.Context, name string) error {
	dir := e.dir(name)
	// Package netns pins namespaces under this lock.
	pins, err := filelock.Open(ctx, dir, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer e.releaseRemoval(pins)
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
	removed := e.dir(removedPrefix + rand.Text())
	if err := os.Rename(dir, removed); err != nil {
		return err
	}
	return os.RemoveAll(removed)
}

// removeEmpty removes the directories that all bottles share, unless a bottle is left in
// them, and what a killed removal has left.
func (e *Engine) removeEmpty() {
	removed, _ := filepath.Glob(e.dir(removedPrefix + "*")) // the pattern is valid
	for _, dir := range removed {
		_ = os.RemoveAll(dir) // on tmpfs, and empty; the next removal tries again
	}
	shareddir.Prune(e.dir(""), e.cfg.RunDir, e.stateDir(""), e.cfg.StateDir)
}

// owned returns an error if the launch's bottle was removed meanwhile, or is being
// removed: its next step could change a later bottle of the same name.
func (l *launch) owned() error {
	if l.self.dir == nil { // not claimed yet
		return nil
	}
	now, err := l.e.identify(l.plan.Name)
	if err != nil {
		return err
	}
	if !l.self.is(now) || l.e.proxies.Removing(l.plan.Name) {
		return fmt.Errorf("launch %s: bottle was removed by another process", l.plan.Name)
	}
	return nil
}

// undoAll undoes a failed launch, after which nothing of it is left.
func (l *launch) undoAll(ctx context.Context) error {
	l.relay.close()
	if l.self.dir == nil {
		return l.undo.run(ctx)
	}
	ctx, cancel := detached(ctx)
	defer cancel()
	lock, err := l.e.hold(ctx, l.plan.Name, l.self)
	if err != nil {
		return err
	}
	if lock == nil {
		return l.removeOwn(ctx)
	}
	defer l.e.releaseRemoval(lock)
	return l.undo.run(ctx)
}

// removeOwn removes what a launch has created after its bottle was removed. The name may
// belong to another bottle, so only what has the launch's own labels is removed.
func (l *launch) removeOwn(ctx context.Context) (err error) {
	e := l.e
	containers, err := e.rt.List(ctx, l.plan.Name)
	if err != nil {
		return err
	}
	own := func(c runtime.Container) bool { return c.Labels[runtime.LabelID] == l.self.id }
	var errs []error
	for _, c := range containers {
		if own(c) {
			errs = append(errs, l.removeOwnContainer(ctx, c.ID, own))
		}
	}
	return errors.Join(append(errs, l.rootfs.Remove(ctx), l.proxyRoot.Remove(ctx))...)
}

// removeOwnContainer checks again under the lock: another process may have removed the
// container meanwhile.
func (l *launch) removeOwnContainer(ctx context.Context, id string, own func(runtime.Container) bool) error {
	e := l.e
	lock, claimed, err := e.holdName(ctx, l.plan.Name)
	if err != nil {
		return err
	}
	defer e.releaseRemoval(lock)
	containers, err := e.rt.List(ctx, l.plan.Name)
	for _, c := range containers {
		if c.ID == id && own(c) {
			err = errors.Join(err, e.rt.Remove(ctx, id))
		}
	}
	if err == nil && claimed {
		err = e.removeDirs(ctx, l.plan.Name)
	}
	return err
}
