package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// lock is the exclusive right to change the host's side of the network. It is a
// flock on a file that is removed with the last bottle.
type lock struct{ f *os.File }

// acquire waits for the lock until ctx ends.
func (m *Manager) acquire(ctx context.Context) (*lock, error) {
	type result struct {
		l   *lock
		err error
	}
	done := make(chan result, 1)
	go func() {
		l, err := m.acquireBlocking(ctx)
		done <- result{l, err}
	}()
	select {
	case r := <-done:
		return r.l, r.err
	case <-ctx.Done():
		// flock cannot be interrupted: release the lock once it is acquired.
		go func() {
			if r := <-done; r.l != nil {
				r.l.release()
			}
		}()
		return nil, fmt.Errorf("wait for the network lock %s: %w", m.lockFile(), ctx.Err())
	}
}

// acquireBlocking waits for the lock, even after ctx has ended if another process
// holds it, but then creates no new file, which nobody would remove.
func (m *Manager) acquireBlocking(ctx context.Context) (*lock, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := os.MkdirAll(m.netDir(), 0o700); err != nil {
			return nil, fmt.Errorf("create the network directory: %w", err)
		}
		f, err := os.OpenFile(m.lockFile(), os.O_CREATE|os.O_RDWR, 0o600)
		if errors.Is(err, os.ErrNotExist) {
			continue // another process removed the directory in between
		}
		if err != nil {
			return nil, fmt.Errorf("open the network lock: %w", err)
		}
		l := &lock{f}
		if err := flock(f); err != nil {
			l.release()
			return nil, fmt.Errorf("acquire the network lock %s: %w", f.Name(), err)
		}
		if l.current() {
			return l, nil
		}
		l.release() // the file was removed while we waited
	}
}

func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// current reports whether the lock's path still leads to the locked file.
func (l *lock) current() bool {
	locked, err := l.f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(l.f.Name())
	return err == nil && os.SameFile(locked, named)
}

// shareWithPlugins makes programs that are started from now on inherit the lock.
// If this process is killed while a plugin runs, the lock is held until that
// plugin has ended, so that no clean-up precedes the plugin's last change.
func (l *lock) shareWithPlugins() (stop func()) {
	set := func(flags int) {
		// It cannot fail on an open file; if it did, only this protection is lost.
		_, _ = unix.FcntlInt(l.f.Fd(), unix.F_SETFD, flags)
	}
	set(0)
	return func() { set(unix.FD_CLOEXEC) }
}

// release unlocks, even if another program has inherited the lock.
func (l *lock) release() {
	_ = unix.Flock(int(l.f.Fd()), unix.LOCK_UN)
	_ = l.f.Close() // nothing was written
}

// removeNetDir removes the lock file and its directory. Processes that wait for
// the lock detect that it is no longer current and create a new one.
func (m *Manager) removeNetDir() error {
	if err := os.RemoveAll(m.ipamDir()); err != nil {
		return fmt.Errorf("remove leases: %w", err)
	}
	for _, p := range []string{m.lockFile(), m.netDir()} {
		err := os.Remove(p)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("remove the network's %s: %w", filepath.Base(p), err)
		}
	}
	return nil
}
