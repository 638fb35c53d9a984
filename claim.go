package bottle

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/scratch"
	"github.com/bot-bottle/bottle/internal/shareddir"
	"github.com/bot-bottle/bottle/runtime"
)

// launchFile is in a bottle's directory from the claim of its name on. It is empty until
// the launch has succeeded. The launching process holds the lock on it, which a dead
// process cannot: a bottle whose lock is held is being launched and is not a leftover, and
// an empty file without a lock is what an interrupted launch left.
const launchFile = "launching"

// claim takes the name by creating the bottle's directory, which only one of several
// concurrent launches can do. Against other programs, containerd decides: it refuses a
// second container of the same name. The directory appears under its name in one step,
// with the identity and the lock.
func (l *launch) claim(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("claim %s: %w", l.plan.Name, err)
		}
	}()
	if err := l.e.makeRunDir(); err != nil {
		return err
	}
	dir, err := scratch.New(ctx, l.e.dir(""))
	if err != nil {
		return err
	}
	if err := l.fillClaim(dir.Path); err != nil {
		return errors.Join(err, dir.Close())
	}
	err = unix.Renameat2(unix.AT_FDCWD, dir.Path, unix.AT_FDCWD, l.dir, unix.RENAME_NOREPLACE)
	if err != nil {
		if errors.Is(err, fs.ErrExist) {
			err = runtime.ErrTaken
		}
		return errors.Join(err, dir.Close())
	}
	l.undo.push(func(ctx context.Context) error { return l.e.removeDirs(ctx, l.plan.Name) })
	if err := dir.Unlock(); err != nil {
		return err
	}
	if l.self, err = l.e.identify(l.plan.Name); err != nil {
		return err
	}
	return shareddir.MkdirAll(l.e.stateDir(l.plan.Name), 0o700)
}

// fillClaim creates the files of a new bottle's directory and locks its launch.
func (l *launch) fillClaim(dir string) (err error) {
	if err := os.WriteFile(filepath.Join(dir, idFile), []byte(rand.Text()), 0o600); err != nil {
		return err
	}
	l.lock, err = os.OpenFile(filepath.Join(dir, launchFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return unix.Flock(int(l.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
}

// launched ends the launch. The size of a file can be changed without space for it.
func (l *launch) launched() error {
	if err := l.owned(); err != nil {
		return err
	}
	if err := l.lock.Truncate(1); err != nil {
		return fmt.Errorf("end launch of %s: %w", l.plan.Name, err)
	}
	return nil
}

// unlock releases the lock on the launch, which has ended.
func (l *launch) unlock() {
	if l.lock != nil {
		_ = l.lock.Close() // nothing was written
	}
}

// unfinished reports whether the launch of a bottle is in progress or was interrupted.
func (e *Engine) unfinished(name string) (bool, error) {
	fi, err := os.Lstat(filepath.Join(e.dir(name), launchFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("check the launch of %s: %w", name, err)
	}
	return fi.Size() == 0, nil
}

// dyingTime is how long a killed process may hold its locks until the kernel has ended it.
const dyingTime = time.Second

// launching reports whether a process is launching the bottle, and still is after the
// given time.
func (e *Engine) launching(ctx context.Context, name string, wait time.Duration) (bool, error) {
	unfinished, err := e.unfinished(name)
	if !unfinished {
		return false, err
	}
	f, err := os.Open(filepath.Join(e.dir(name), launchFile))
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
