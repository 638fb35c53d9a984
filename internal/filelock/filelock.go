// Package filelock locks a file or a directory exclusively between processes, with
// flock(2). A waiter can be cancelled, and a lock file may be removed by its holder:
// Open, Create and CreateAll return only a lock on the file that the path names at
// that moment.
package filelock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/shareddir"
)

// Lock is a held lock. The kernel releases it when the process ends.
type Lock struct{ f *os.File }

// Open waits for the lock on an existing file or directory until ctx ends. If
// another holder has it, waiting is called once before the wait; it may be nil. The
// error wraps fs.ErrNotExist if path does not exist or was removed during the wait,
// and ctx's error if ctx ended.
func Open(ctx context.Context, path string, waiting func()) (*Lock, error) {
	return acquire(ctx, waiting, func() (*os.File, error) { return os.Open(path) })
}

// Create is Open for a file that it creates, with mode 0600, if it does not exist.
// It creates nothing after ctx has ended. The directory must exist.
func Create(ctx context.Context, path string, waiting func()) (*Lock, error) {
	return acquire(ctx, waiting, func() (*os.File, error) { return create(path) })
}

// CreateAll is Create for a path whose directories may be missing or may be removed
// concurrently. It creates them with mode 0700.
func CreateAll(ctx context.Context, path string, waiting func()) (*Lock, error) {
	return acquire(ctx, waiting, func() (*os.File, error) {
		for {
			// Another holder may remove the directory before the file is in it.
			err := shareddir.MkdirAll(filepath.Dir(path), 0o700)
			var f *os.File
			if err == nil {
				f, err = create(path)
			}
			if !errors.Is(err, os.ErrNotExist) || ctx.Err() != nil {
				return f, err
			}
		}
	})
}

func create(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
}

func acquire(ctx context.Context, waiting func(), open func() (*os.File, error)) (*Lock, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		f, err := open()
		if err != nil {
			return nil, err
		}
		err = flock(f, unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			if waiting != nil {
				waiting()
				waiting = nil
			}
			if err = wait(ctx, f); errors.Is(err, ctx.Err()) && err != nil {
				return nil, fmt.Errorf("wait for the lock %s: %w", f.Name(), err)
			}
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
		}
		l := &Lock{f}
		current, err := l.current()
		if current {
			return l, nil
		}
		if err := errors.Join(err, l.Release()); err != nil {
			return nil, err
		}
	}
}

// wait blocks until f is locked. If ctx ends first it returns ctx's error, and f is
// closed once flock(2), which cannot be interrupted, has returned: closing it earlier
// would let a retry lock whichever file got its descriptor.
func wait(ctx context.Context, f *os.File) error {
	done := make(chan error, 1)
	go func() { done <- flock(f, unix.LOCK_EX) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		go func() {
			<-done        //nolint:errcheck // nobody waits for the lock any more
			_ = f.Close() // releases the lock; nothing was written
		}()
		return ctx.Err()
	}
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// current reports whether the lock's path still names the locked file.
func (l *Lock) current() (bool, error) {
	locked, err := l.f.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Stat(l.f.Name())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(locked, named), err
}

// Share makes programs started until stop is called inherit the lock. If this process
// is then killed, the lock is held until they have ended.
func (l *Lock) Share() (stop func()) {
	set := func(flags int) {
		// It cannot fail on an open file; if it did, only the inheritance is lost.
		_, _ = unix.FcntlInt(l.f.Fd(), unix.F_SETFD, flags)
	}
	set(0)
	return func() { set(unix.FD_CLOEXEC) }
}

// Release releases the lock, even if a program has inherited it.
func (l *Lock) Release() error {
	if err := errors.Join(flock(l.f, unix.LOCK_UN), l.f.Close()); err != nil {
		return fmt.Errorf("release the lock %s: %w", l.f.Name(), err)
	}
	return nil
}
