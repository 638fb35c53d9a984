package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/filelock"
)

// lock is an exclusive right: to change the host's side of the network (the network
// lock, whose file is removed with the last bottle), or to change one bottle's.
type lock struct {
	*filelock.Lock
	m *Manager
}

// acquire waits for the lock until ctx ends. Creating its file is the first change
// on the host and removing it the last: while a resource that bottles share exists,
// so does the file.
func (m *Manager) acquire(ctx context.Context) (*lock, error) {
	l, err := filelock.CreateAll(ctx, m.lockFile(), nil)
	return m.locked(l, err)
}

// acquireExisting returns nil if there is no network directory. Creating the
// directory again would leave it behind if nobody removes anything afterwards.
func (m *Manager) acquireExisting(ctx context.Context) (*lock, error) {
	l, err := filelock.Create(ctx, m.lockFile(), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return m.locked(l, err)
}

// acquireBottle waits for the right to create or remove the bottle's namespaces and
// to attach them. It precedes the network lock where both are needed. It is a lock on
// the bottle's directory; if there is none, acquireBottle returns nil.
func (m *Manager) acquireBottle(ctx context.Context, dir string) (*lock, error) {
	l, err := filelock.Open(ctx, dir, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return m.locked(l, err)
}

func (m *Manager) locked(l *filelock.Lock, err error) (*lock, error) {
	if err != nil {
		return nil, fmt.Errorf("acquire lock: %w", err)
	}
	return &lock{l, m}, nil
}

// release logs an error: everything that the lock protects is done by then.
func (l *lock) release() {
	if l == nil {
		return
	}
	if err := l.Release(); err != nil {
		l.m.log.Error("release lock", "error", err)
	}
}

// removeNetDir removes the network directory, the lock file last. Processes that wait
// for the lock then create a new one.
func (m *Manager) removeNetDir() error {
	entries, err := os.ReadDir(m.netDir())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("list the network directory: %w", err)
	}
	for _, e := range entries {
		if path := filepath.Join(m.netDir(), e.Name()); path != m.lockFile() {
			if err := os.RemoveAll(path); err != nil {
				return fmt.Errorf("empty the network directory: %w", err)
			}
		}
	}
	for _, p := range []string{m.lockFile(), m.netDir()} {
		err := os.Remove(p)
		// Another process may already have created a new lock file.
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("remove the network's %s: %w", filepath.Base(p), err)
		}
	}
	return nil
}
