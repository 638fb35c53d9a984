package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// lock is the right to change the host's side of the network. It is a flock on
// a file that the last one out removes.
type lock struct{ f *os.File }

// acquire waits for the lock, until ctx ends.
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
		// flock cannot be interrupted: whoever gets it gives it back.
		go func() {
			if r := <-done; r.l != nil {
				r.l.release()
			}
		}()
		return nil, fmt.Errorf("wait for the network lock %s: %w", m.lockFile(), ctx.Err())
	}
}

// acquireBlocking waits for the lock, beyond the end of ctx if somebody holds
// it, but makes no new file then: nobody would remove it.
func (m *Manager) acquireBlocking(ctx context.Context) (*lock, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := os.MkdirAll(m.netDir(), 0o700); err != nil {
			return nil, fmt.Errorf("make the network's folder: %w", err)
		}
		f, err := os.OpenFile(m.lockFile(), os.O_CREATE|os.O_RDWR, 0o600)
		if errors.Is(err, os.ErrNotExist) {
			continue // the last one out was between the two
		}
		if err != nil {
			return nil, fmt.Errorf("open the network lock: %w", err)
		}
		l := &lock{f}
		if err := flock(f); err != nil {
			l.release()
			return nil, fmt.Errorf("take the network lock %s: %w", f.Name(), err)
		}
		if l.current() {
			return l, nil
		}
		l.release() // removed while we waited
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

// current tells whether the file that is locked is still the one of that name.
func (l *lock) current() bool {
	mine, err := l.f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(l.f.Name())
	return err == nil && os.SameFile(mine, named)
}

// shareWithPlugins has programs started from now on hold the lock too. If this
// process is killed while a plugin works, the lock is held until that plugin
// has ended, so that a clean-up cannot come before the plugin's last change.
func (l *lock) shareWithPlugins() (stop func()) {
	set := func(flags int) {
		// It cannot fail on an open file; if it did, only that protection is lost.
		_, _ = unix.FcntlInt(l.f.Fd(), unix.F_SETFD, flags)
	}
	set(0)
	return func() { set(unix.FD_CLOEXEC) }
}

// release gives the lock back, even where another program shares it.
func (l *lock) release() {
	_ = unix.Flock(int(l.f.Fd()), unix.LOCK_UN)
	_ = l.f.Close() // nothing was written
}

// removeNetDir takes away the lock file and its folder. Whoever waits for the
// lock finds that it is no longer current and makes a new one.
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
