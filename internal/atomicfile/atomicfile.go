// Package atomicfile writes files atomically: a reader, or a crash, sees the old or
// the new contents, never a part of either.
package atomicfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Write creates or replaces the file at path, with exactly the given permissions.
// The file is new: its owner is the process, and open files, hard links and mounts of
// the old one are not affected. Writers may run concurrently; the last one wins.
func Write(path string, data []byte, perm os.FileMode) error {
	return write(path, data, func(f *os.File) error { return f.Chmod(perm.Perm()) })
}

// WriteFor is Write for a file that belongs to a user and their group of the same number.
func WriteFor(path string, data []byte, perm os.FileMode, uid int) error {
	return write(path, data, func(f *os.File) error { return errors.Join(f.Chmod(perm.Perm()), f.Chown(uid, uid)) })
}

// Replace is Write for an existing file, whose permissions and owner it keeps.
func Replace(path string, data []byte) error {
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	return write(path, data, func(f *os.File) error {
		err := f.Chmod(fi.Mode().Perm())
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			err = errors.Join(err, f.Chown(int(st.Uid), int(st.Gid)))
		}
		return err
	})
}

// write sets the attributes of the temporary file, so that the file never exists with
// others under its name.
func write(path string, data []byte, attributes func(*os.File) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, errors.Join(err, os.Remove(f.Name())))
		}
	}()
	_, err = f.Write(data)
	if err = errors.Join(err, attributes(f), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
