package claudelogin

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/bot-bottle/bottle/internal/caller"
)

// Claude Code locks with directories (proper-lockfile): whoever creates one has the lock, and
// sets its time every few seconds. A lock whose time is old belongs to a program that has died.
const (
	staleTime  = 60 * time.Second
	updateTime = 5 * time.Second
)

// lockedError says that another program has a lock.
type lockedError struct{ path string }

func (e *lockedError) Error() string { return "another program is renewing the login: " + e.path }

// lockDir takes both of Claude Code's locks for its directory.
func lockDir(c caller.Caller, dir string) (unlock func() error, err error) {
	var paths []string
	remove := func() error {
		return c.Do(func() (err error) {
			for _, path := range slices.Backward(paths) {
				if e := os.Remove(path); e != nil && !errors.Is(e, fs.ErrNotExist) {
					err = errors.Join(err, e)
				}
			}
			return err
		})
	}
	err = c.Do(func() error {
		real, err := filepath.EvalSymlinks(dir)
		if err != nil {
			return err
		}
		path := filepath.Join(dir, ".oauth_refresh.lock")
		if err := take(path); err != nil {
			return err
		}
		paths = append(paths, path)
		// Older versions know only this one. It is outside of the directory, where the user may
		// not be able to create it.
		var locked *lockedError
		switch err := take(real + ".lock"); {
		case errors.As(err, &locked):
			return err
		case err == nil:
			paths = append(paths, real+".lock")
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, remove())
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		keep(c, paths, end)
	}()
	return func() error {
		close(end)
		<-ended
		return remove()
	}, nil
}

// take creates a lock, or takes over that of a program that has died.
func take(path string) error {
	err := os.Mkdir(path, 0o755)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &lockedError{path} // it was free for a moment
	}
	if err != nil || time.Since(fi.ModTime()) < staleTime {
		return errors.Join(err, &lockedError{path})
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Mkdir(path, 0o755); errors.Is(err, fs.ErrExist) {
		return &lockedError{path}
	}
	return err
}

// keep sets the time of locks until end is closed.
func keep(c caller.Caller, paths []string, end <-chan struct{}) {
	tick := time.NewTicker(updateTime)
	defer tick.Stop()
	for {
		select {
		case <-end:
			return
		case <-tick.C:
			_ = c.Do(func() error { // a lock that is gone is no longer ours
				for _, path := range paths {
					if err := os.Chtimes(path, time.Time{}, time.Now()); err != nil {
						return err
					}
				}
				return nil
			})
		}
	}
}
