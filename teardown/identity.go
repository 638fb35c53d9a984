package teardown

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/bot-bottle/bottle/internal/filelock"
	"github.com/bot-bottle/bottle/internal/shareddir"
	"github.com/bot-bottle/bottle/runtime"
)

// A name can be used again as soon as its bottle is removed. Whoever removes a bottle
// must therefore not touch a later bottle of the same name: removals of a name take
// turns by a lock in the bottle's directory, and after the wait for it a removal
// continues only if the directory is still the one it started with. The directory is
// removed last, and only by the holder of the lock, so nobody can launch a bottle of
// the name meanwhile.

// Identity distinguishes a bottle from others that have or had its name.
type Identity struct {
	Name string
	// ID is random, because inode numbers may be used again. It is empty until a launch
	// has written it, and for bottles of versions that did not.
	ID string
	// dir is nil if there was no directory of the name, for example after a crash and a
	// reboot.
	dir fs.FileInfo
}

// Is reports whether both identify the same bottle.
func (i Identity) Is(other Identity) bool {
	return i.dir != nil && other.dir != nil && os.SameFile(i.dir, other.dir) &&
		(i.ID == other.ID || i.ID == "" || other.ID == "")
}

// Files in a bottle's directory.
const (
	idFile     = "id"
	removeLock = "remove.lock"
)

// Identify returns the identity of the bottle that has the name now.
func (m *Manager) Identify(name string) (Identity, error) {
	dir, err := os.Lstat(m.dir(name))
	if errors.Is(err, fs.ErrNotExist) {
		return Identity{Name: name}, nil
	}
	if err != nil {
		return Identity{}, fmt.Errorf("identify %s: %w", name, err)
	}
	id, err := os.ReadFile(filepath.Join(m.dir(name), idFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Identity{}, fmt.Errorf("identify %s: %w", name, err)
	}
	return Identity{Name: name, ID: string(id), dir: dir}, nil
}

// hold waits for the lock on the removal of a bottle. It returns nil if the bottle is
// gone: removed by another process, and possibly replaced.
func (m *Manager) hold(ctx context.Context, want Identity) (*filelock.Lock, error) {
	lock, err := m.lockRemoval(ctx, want.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	now, err := m.Identify(want.Name)
	if err == nil && want.Is(now) {
		return lock, nil
	}
	return nil, errors.Join(err, lock.Release())
}

// holdName waits for the lock on the removal of the bottle that has the name. If none
// has it, holdName claims it, as a launch does; then the caller must remove the directory.
func (m *Manager) holdName(ctx context.Context, name string) (lock *filelock.Lock, claimed bool, err error) {
	for {
		var mine Identity
		err := shareddir.Mkdir(m.dir(name), 0o700)
		if err == nil {
			mine, err = m.Identify(name)
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, false, fmt.Errorf("claim %s: %w", name, err)
		}
		lock, err := m.lockRemoval(ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // another process has removed the directory
		}
		if err != nil {
			return nil, false, err
		}
		now, err := m.Identify(name)
		if err != nil {
			return nil, false, errors.Join(err, lock.Release())
		}
		return lock, mine.Is(now), nil
	}
}

func (m *Manager) lockRemoval(ctx context.Context, name string) (*filelock.Lock, error) {
	lock, err := filelock.Create(ctx, filepath.Join(m.dir(name), removeLock), func() { m.cfg.At("wait for removal") })
	if err != nil {
		return nil, fmt.Errorf("lock removal of %s: %w", name, err)
	}
	return lock, nil
}

// release releases a lock. Everything that it protects is done by then.
func (m *Manager) release(lock *filelock.Lock) {
	if err := lock.Release(); err != nil {
		m.log.Error("release lock", "error", err)
	}
}

// Hold waits for the lock on the removal of a bottle, which then is not removed until release
// is called. The error wraps runtime.ErrNotRunning if it was removed.
func (m *Manager) Hold(ctx context.Context, bottle Identity) (release func(), err error) {
	lock, err := m.hold(ctx, bottle)
	if err != nil {
		return nil, err
	}
	if lock == nil {
		return nil, fmt.Errorf("%s: %w", bottle.Name, runtime.ErrNotRunning)
	}
	return func() { m.release(lock) }, nil
}

// Relaunch marks a bottle, whose removal the caller holds, as one that is being launched
// again: if its process dies, a removal waits for what containerd may still be creating. The
// caller calls complete when nothing is being created any more.
func (m *Manager) Relaunch(name string) (complete func() error, err error) {
	file := filepath.Join(m.dir(name), launchFile)
	set := func(size int64) error {
		if err := os.Truncate(file, size); err != nil {
			return fmt.Errorf("launch %s again: %w", name, err)
		}
		return nil
	}
	return func() error { return set(1) }, set(0)
}
