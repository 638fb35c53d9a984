// Package shareddir creates and removes directories that several processes share and
// that whoever leaves last removes. os.MkdirAll is several system calls, and fails
// with fs.ErrNotExist or fs.ErrExist if another process removes a directory between
// two of them.
package shareddir

import (
	"errors"
	"os"
	"path/filepath"
)

// attempts bounds the retries. Each failed attempt means that another process removed
// a directory within the microseconds that the attempt took.
const attempts = 1000

// MkdirAll is os.MkdirAll for directories that other processes may remove
// concurrently. They may also remove the new directory before the caller uses it: use
// Mkdir for a directory that must then stay, or retry.
func MkdirAll(path string, perm os.FileMode) error {
	return retry(func() error { return os.MkdirAll(path, perm) })
}

// Mkdir creates path, as os.Mkdir, and its missing parents. Of several callers one
// succeeds and the others get fs.ErrExist. A process that removes only empty
// directories cannot remove the parents any more.
func Mkdir(path string, perm os.FileMode) error {
	return retry(func() error {
		if err := MkdirAll(filepath.Dir(path), perm); err != nil {
			return err
		}
		err := os.Mkdir(path, perm)
		if errors.Is(err, os.ErrExist) {
			return final{err}
		}
		return err
	})
}

// Prune removes the directories that are empty, in the given order, and ignores the
// others.
func Prune(paths ...string) {
	for _, p := range paths {
		_ = os.Remove(p) // fails if the directory is in use
	}
}

// final is an error that is not retried.
type final struct{ error }

func (e final) Unwrap() error { return e.error }

func retry(fn func() error) error {
	var err error
	for range attempts {
		if err = fn(); !raced(err) {
			break
		}
	}
	var f final
	if errors.As(err, &f) {
		return f.error
	}
	return err
}

// raced reports whether an error may come from a directory that was removed between
// two system calls.
func raced(err error) bool {
	var f final
	var p *os.PathError
	switch {
	case errors.As(err, &f) || !errors.As(err, &p):
		return false
	case errors.Is(err, os.ErrNotExist):
		return true
	case errors.Is(err, os.ErrExist):
		// os.MkdirAll returns it when mkdir(2) found the directory and the following
		// lstat(2) did not.
		fi, err := os.Lstat(p.Path)
		return errors.Is(err, os.ErrNotExist) || err == nil && fi.IsDir()
	}
	return false
}
