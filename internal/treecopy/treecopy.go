// Package treecopy copies directories of bottle's own with everything that a file system
// keeps of them: owners, modes, times, extended attributes, links and the whiteouts of
// overlayfs. It follows no link. Large files share their blocks where the file system can do
// that, and keep their holes. Sockets are left out. It is not for directories that an agent can
// change meanwhile.
package treecopy

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Dir copies a directory to a new one, or to an existing empty one, without the entries of the
// top directory that skip returns true for; it may be nil.
func Dir(from, to string, skip func(name string) bool) error {
	var dirs []string // whose times change until everything is copied
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path != from {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if skip != nil && rel != "." && !strings.Contains(rel, "/") && skip(rel) {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if d.IsDir() {
			dirs = append(dirs, rel)
		}
		err = entry(path, filepath.Join(to, rel))
		if _, lerr := os.Lstat(path); errors.Is(lerr, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		return err
	})
	for i := len(dirs) - 1; i >= 0 && err == nil; i-- {
		var st unix.Stat_t
		if err = unix.Lstat(filepath.Join(from, dirs[i]), &st); err == nil {
			err = setTimes(filepath.Join(to, dirs[i]), &st)
		}
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return nil
}

// File copies a regular file, with everything that Dir keeps.
func File(from, to string) error {
	if err := entry(from, to); err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return nil
}

func entry(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		err = content(from, to)
	case unix.S_IFDIR:
		if err = os.Mkdir(to, 0o700); errors.Is(err, fs.ErrExist) {
			err = nil
		}
	case unix.S_IFLNK:
		var target string
		if target, err = os.Readlink(from); err == nil {
			err = os.Symlink(target, to)
		}
	case unix.S_IFSOCK: // nobody listens on the copy of one
		return nil
	default:
		err = unix.Mknod(to, st.Mode, int(st.Rdev))
	}
	if err != nil {
		return err
	}
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Chmod(to, st.Mode&^unix.S_IFMT); err != nil {
			return err
		}
	}
	if err := attributes(from, to); err != nil {
		return err
	}
	return setTimes(to, &st)
}

func setTimes(path string, st *unix.Stat_t) error {
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// attributes copies extended attributes, among them those of overlayfs.
func attributes(from, to string) error {
	names := make([]byte, 64<<10) // the most that there can be (listxattr(2))
	n, err := unix.Llistxattr(from, names)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return err
	}
	value := make([]byte, 64<<10)
	for _, name := range strings.FieldsFunc(string(names[:n]), func(r rune) bool { return r == 0 }) {
		size, err := unix.Lgetxattr(from, name, value)
		if err == nil {
			err = unix.Lsetxattr(to, name, value[:size], 0)
		}
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return nil
}

// content copies the content of a regular file.
func content(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // nothing was written
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
		return nil
	}
	fi, err := in.Stat()
	if err != nil {
		return err
	}
	if err := out.Truncate(fi.Size()); err != nil {
		return err
	}
	for at := int64(0); at < fi.Size(); {
		begin, err := unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // a hole until the end
		}
		if err != nil {
			return err
		}
		if at, err = unix.Seek(int(in.Fd()), begin, unix.SEEK_HOLE); err != nil {
			return err
		}
		part := io.NewSectionReader(in, begin, at-begin)
		if _, err := io.Copy(io.NewOffsetWriter(out, begin), part); err != nil {
			return err
		}
	}
	return nil
}
