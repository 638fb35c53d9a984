package teardown

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/hosttask"
	"github.com/bot-bottle/bottle/internal/scratch"
	"github.com/bot-bottle/bottle/internal/shareddir"
	"github.com/bot-bottle/bottle/internal/timing"
	"github.com/bot-bottle/bottle/proxy"
	"github.com/bot-bottle/bottle/runtime"
)

// launchFile is in a bottle's directory from the claim of its name on. It is empty until
// the launch has succeeded. The launching process holds the lock on it, which a dead
// process cannot: a bottle whose lock is held is being launched and is not a leftover, and
// an empty file without a lock is what an interrupted launch left.
const launchFile = hosttask.LaunchFile

// Claim is a name that a launch has taken, and what the launch has created under it. The
// launch must call Complete or Abort, and then Unlock.
type Claim struct {
	m    *Manager
	self Identity
	lock *os.File // launchFile

	mu      sync.Mutex // strands of a launch add concurrently
	own     []func(context.Context) error
	newWork bool
}

// Claim takes the name by creating the bottle's directory, which only one of several
// concurrent launches can do: the error wraps runtime.ErrTaken. Against other programs,
// containerd decides: it refuses a second container of the same name. The directory
// appears under its name in one step, with the identity and the lock.
func (m *Manager) Claim(ctx context.Context, name string) (_ *Claim, err error) {
	c := &Claim{m: m, self: Identity{Name: name}}
	defer func() {
		if err != nil {
			c.Unlock()
			err = fmt.Errorf("claim %s: %w", name, err)
		}
	}()
	if err := m.MakeRunDir(); err != nil {
		return nil, err
	}
	dir, err := scratch.New(ctx, m.dir(""))
	if err != nil {
		return nil, err
	}
	// Before it has its name: from then on another process can remove it.
	if err := c.fill(dir.Path); err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	err = unix.Renameat2(unix.AT_FDCWD, dir.Path, unix.AT_FDCWD, m.dir(name), unix.RENAME_NOREPLACE)
	if err != nil {
		if errors.Is(err, fs.ErrExist) {
			err = runtime.ErrTaken
		}
		return nil, errors.Join(err, dir.Close())
	}
	err = dir.Unlock()
	m.cfg.At("claimed")
	if err == nil {
		err = shareddir.MkdirAll(m.StateDir(name), 0o700)
	}
	if err != nil {
		if uerr := c.Abort(ctx); uerr != nil {
			m.log.Error("undo launch", "bottle", name, "error", uerr)
		}
		return nil, err
	}
	return c, nil
}

// Take claims a bottle that was launched ahead of its use, as if it were being launched
// again: an interrupted claim is an interrupted launch, and is removed like one. Only one
// of several concurrent callers gets it, and the error of the others wraps
// runtime.ErrTaken. Under the lock, check says whether the bottle can still be claimed.
// The caller must call Complete or remove the bottle, and then Unlock.
func (m *Manager) Take(name string, check func() error) (_ *Claim, err error) {
	c := &Claim{m: m}
	defer func() {
		if err != nil {
			c.Unlock()
			err = fmt.Errorf("claim %s: %w", name, err)
		}
	}()
	if c.self, err = m.Identify(name); err != nil {
		return nil, err
	}
	c.lock, err = os.OpenFile(filepath.Join(m.dir(name), launchFile), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		err = runtime.ErrTaken // and removed
	}
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(c.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = runtime.ErrTaken
	}
	if err != nil {
		return nil, err
	}
	fi, err := c.lock.Stat()
	if err != nil {
		return nil, err
	}
	if fi.Size() == 0 { // its launch, or another claim, was interrupted
		return nil, runtime.ErrTaken
	}
	// The file that is locked is the named bottle's.
	if err := errors.Join(c.Check(), check()); err != nil {
		return nil, err
	}
	if err := c.lock.Truncate(0); err != nil {
		return nil, err
	}
	return c, nil
}

// Finished reports whether the launch of a bottle is complete.
func (m *Manager) Finished(name string) bool {
	fi, err := os.Lstat(filepath.Join(m.dir(name), launchFile))
	return err == nil && fi.Size() > 0
}

// Launching reports whether a process is launching or claiming the bottle.
func (m *Manager) Launching(ctx context.Context, name string) (bool, error) {
	return m.launching(ctx, name, 0)
}

// StateDirs returns the names of the bottles that have a directory on disk.
func (m *Manager) StateDirs() ([]string, error) { return bottleDirs(m.StateDir("")) }

// fill creates the files of a new bottle's directory, identifies the bottle and locks its
// launch. Among the files are those that a removal needs, which then needs no space.
func (c *Claim) fill(dir string) (err error) {
	c.self.ID = rand.Text()
	if c.self.dir, err = os.Lstat(dir); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, idFile), []byte(c.self.ID), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, removeLock), nil, 0o600); err != nil {
		return err
	}
	if err := errors.Join(proxy.Reserve(dir), runtime.ReserveLocks(dir, c.self.Name)); err != nil {
		return err
	}
	c.lock, err = os.OpenFile(filepath.Join(dir, launchFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return unix.Flock(int(c.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
}

// Identity returns the identity of the bottle that is being launched.
func (c *Claim) Identity() Identity { return c.self }

// Check returns an error if the launch's bottle was removed meanwhile, or is being
// removed: its next step could change a later bottle of the same name.
func (c *Claim) Check() error {
	now, err := c.m.Identify(c.self.Name)
	if err != nil {
		return err
	}
	if !c.self.Is(now) || c.m.proxies.Removing(c.self.Name) {
		return fmt.Errorf("launch %s: bottle was removed by another process", c.self.Name)
	}
	return nil
}

// Complete ends a successful launch. The size of a file can be changed without space for
// it.
func (c *Claim) Complete() error {
	if err := c.Check(); err != nil {
		return err
	}
	if err := c.lock.Truncate(1); err != nil {
		return fmt.Errorf("end launch of %s: %w", c.self.Name, err)
	}
	return nil
}

// Unlock releases the lock on the launch, which has ended.
func (c *Claim) Unlock() {
	if c != nil && c.lock != nil {
		_ = c.lock.Close() // nothing was written
	}
}

// Own adds a function that removes something that only this launch has created, even if
// the name belongs to another bottle by then. Abort calls it.
func (c *Claim) Own(remove func(context.Context) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.own = append(c.own, remove)
}

// OwnWorkspace records that the launch has created the bottle's workspace, which no agent
// has used before the launch is complete. Abort removes it.
func (c *Claim) OwnWorkspace() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.newWork = true
}

// Abort removes a bottle whose launch has failed, as any other bottle is removed, except
// containers and snapshots of its name that the launch has not created. It is not
// cancelled with ctx, continues after errors and returns all of them.
func (c *Claim) Abort(ctx context.Context) error {
	ctx, cancel := Detached(ctx)
	defer cancel()
	lock, err := c.m.hold(ctx, c.self)
	if err != nil {
		return err
	}
	if lock == nil {
		return c.removeOwn(ctx)
	}
	defer c.m.release(lock)
	c.mu.Lock()
	newWork := c.newWork
	c.mu.Unlock()
	if newWork {
		if err := c.m.work.Abandon(c.self.Name); err != nil {
			return err
		}
	}
	return c.m.removeHeld(ctx, c.self.Name, removal{
		container: func(ctx context.Context, id string) error { return c.m.rt.RemoveLaunched(ctx, id, c.self.ID) },
		own:       c.removeCreated,
	}, &timing.Timings{})
}

// removeCreated calls the functions of Own, the last one first.
func (c *Claim) removeCreated(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, remove := range slices.Backward(c.own) {
		errs = append(errs, remove(ctx))
	}
	return errors.Join(errs...)
}

// removeOwn removes what a launch has created after its bottle was removed. The name may
// belong to another bottle, so only what has the launch's own labels is removed.
func (c *Claim) removeOwn(ctx context.Context) error {
	containers, err := c.m.rt.List(ctx)
	if err != nil {
		return err
	}
	own := func(ct runtime.Container) bool { return ct.Labels[runtime.LabelID] == c.self.ID }
	var errs []error
	for _, ct := range containers {
		if own(ct) {
			errs = append(errs, c.removeOwnContainer(ctx, ct.ID, own))
		}
	}
	return errors.Join(append(errs, c.removeCreated(ctx))...)
}

// removeOwnContainer checks again under the lock: another process may have removed the
// container meanwhile.
func (c *Claim) removeOwnContainer(ctx context.Context, id string, own func(runtime.Container) bool) error {
	m, name := c.m, c.self.Name
	lock, claimed, err := m.holdName(ctx, name)
	if err != nil {
		return err
	}
	defer m.release(lock)
	containers, err := m.rt.List(ctx)
	for _, ct := range containers {
		if ct.ID == id && own(ct) {
			err = errors.Join(err, m.rt.Remove(ctx, id))
		}
	}
	if err == nil && claimed {
		err = m.removeDirs(ctx, name)
	}
	return err
}

// unfinished reports whether the launch of a bottle is in progress or was interrupted.
func (m *Manager) unfinished(name string) (bool, error) {
	fi, err := os.Lstat(filepath.Join(m.dir(name), launchFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("check the launch of %s: %w", name, err)
	}
	return fi.Size() == 0, nil
}

// launching reports whether a process is launching the bottle, and still is after the
// given time.
func (m *Manager) launching(ctx context.Context, name string, wait time.Duration) (bool, error) {
	unfinished, err := m.unfinished(name)
	if !unfinished {
		return false, err
	}
	f, err := os.Open(filepath.Join(m.dir(name), launchFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("check the launch of %s: %w", name, err)
	}
	defer func() { _ = f.Close() }() // nothing was written
	for end := time.Now().Add(wait); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
		switch {
		case err == nil:
			return false, nil
		case !errors.Is(err, unix.EWOULDBLOCK):
			return false, fmt.Errorf("check the launch of %s: %w", name, err)
		case !time.Now().Before(end):
			return true, nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}
