// Package scratch creates temporary directories that are recognized as abandoned when
// their process has died: each has a lock that a dead process cannot hold.
package scratch

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/filelock"
	"github.com/bot-bottle/bottle/internal/shareddir"
	"github.com/bot-bottle/bottle/internal/unmount"
)

// Prefix begins the names of scratch directories.
const Prefix = ".scratch-"

// Dir is a scratch directory of this process.
type Dir struct {
	Path string
	lock *filelock.Lock
}

// New creates a directory in parent, which may be missing.
func New(ctx context.Context, parent string) (*Dir, error) {
	for {
		path := filepath.Join(parent, Prefix+rand.Text())
		if err := shareddir.Mkdir(path, 0o700); err != nil {
			return nil, fmt.Errorf("create scratch directory: %w", err)
		}
		lock, err := filelock.Open(ctx, path, nil)
		if errors.Is(err, os.ErrNotExist) {
			continue // removed as abandoned before it was locked
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("create scratch directory: %w", err), os.Remove(path))
		}
		return &Dir{Path: path, lock: lock}, nil
	}
}

// Close unmounts what is mounted in the directory and removes it.
func (d *Dir) Close() error {
	return errors.Join(remove(d.Path), d.lock.Release())
}

// Unlock releases the directory, which the caller has renamed, from this package.
func (d *Dir) Unlock() error { return d.lock.Release() }

func remove(path string) error {
	if err := unmount.Below(path); err != nil {
		return err
	}
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("remove scratch directory: %w", err)
	}
	return nil
}

// Abandoned returns the paths of the scratch directories in parent whose processes have
// ended, or end within the given time: a killed process holds its locks until the kernel
// has ended it. Without a wait there is no waiter either, which would get the lock for a
// moment when it becomes free.
func Abandoned(ctx context.Context, parent string, wait time.Duration) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	entries, err := os.ReadDir(parent)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list scratch directories: %w", err)
	}
	var out []string
	for _, e := range entries {
		path := filepath.Join(parent, e.Name())
		if !e.IsDir() || !strings.HasPrefix(e.Name(), Prefix) {
			continue
		}
		f, err := tryLock(path)
		if f == nil && err == nil && wait > 0 {
			var l *filelock.Lock
			if l, err = filelock.Open(ctx, path, nil); err == nil {
				out = append(out, path)
				err = l.Release()
			}
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, context.DeadlineExceeded) {
				err = nil // removed, or in use
			}
		} else if f != nil {
			out = append(out, path)
			_ = f.Close() // nothing was written
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Remove removes an abandoned scratch directory. A directory in use stays.
func Remove(path string) error {
	f, err := tryLock(path)
	if f == nil {
		return err
	}
	defer func() { _ = f.Close() }() // nothing was written
	return remove(path)
}

// tryLock returns nil if the directory is in use or does not exist.
func tryLock(path string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open scratch directory: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	_ = f.Close() // nothing was written
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, nil
	}
	return nil, fmt.Errorf("lock scratch directory %s: %w", path, err)
}
