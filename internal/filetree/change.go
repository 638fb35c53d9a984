package filetree

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// at calls fn with the parent directory of a name.
func (r *Root) at(op, name string, fn func(fd int, base string) error) error {
	fd, base, err := r.parent(name)
	if err != nil {
		return err
	}
	if base == "." {
		return &os.PathError{Op: op, Path: name, Err: ErrName}
	}
	if err := fn(fd, base); err != nil {
		return &os.PathError{Op: op, Path: name, Err: err}
	}
	return nil
}

// Mkdir creates a directory.
func (r *Root) Mkdir(name string, perm uint32) error {
	return r.at("mkdir", name, func(fd int, base string) error { return unix.Mkdirat(fd, base, perm) })
}

// Rmdir removes an empty directory.
func (r *Root) Rmdir(name string) error {
	defer r.forget()
	return r.at("rmdir", name, func(fd int, base string) error { return unix.Unlinkat(fd, base, unix.AT_REMOVEDIR) })
}

// Unlink removes a file that is not a directory.
func (r *Root) Unlink(name string) error {
	return r.at("unlink", name, func(fd int, base string) error { return unix.Unlinkat(fd, base, 0) })
}

// Symlink creates a symbolic link.
func (r *Root) Symlink(target, name string) error {
	return r.at("symlink", name, func(fd int, base string) error { return unix.Symlinkat(target, fd, base) })
}

// Create creates a regular file with size bytes of content.
func (r *Root) Create(name string, content io.Reader, size int64, perm uint32) error {
	return r.at("create", name, func(at int, base string) (err error) {
		fd, err := retry(func() (int, error) {
			return unix.Openat(at, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unix.Close(fd)) }()
		if err := WriteSparse(fd, content, size, make([]byte, 128<<10)); err != nil {
			return err
		}
		return unix.Fchmod(fd, perm&0o777)
	})
}

// Rename moves a file, and replaces one of the new name.
func (r *Root) Rename(from, to string) error { return r.rename(from, to, 0) }

// RenameNew moves a file to a name that does not exist yet.
func (r *Root) RenameNew(from, to string) error {
	err := r.rename(from, to, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	// A file system without that operation (rename(2)).
	if e, err := r.Lstat(to); err != nil || e.Kind != Missing {
		return errors.Join(err, &os.PathError{Op: "rename", Path: to, Err: unix.EEXIST})
	}
	return r.Rename(from, to)
}

func (r *Root) rename(from, to string, flags uint) error {
	defer r.forget() // it may be a directory
	return r.at("rename", to, func(fd int, base string) error {
		other := &Root{fd: r.fd, dirFD: -1} // keeps both parents open
		defer other.forget()
		return other.at("rename", from, func(old int, name string) error {
			return unix.Renameat2(old, name, fd, base, flags)
		})
	})
}

// Keep makes a file available under a second name: by a hard link, or, where that is not
// possible, by moving it.
func (r *Root) Keep(from, to string) error {
	err := r.at("link", to, func(fd int, base string) error {
		other := &Root{fd: r.fd, dirFD: -1}
		defer other.forget()
		return other.at("link", from, func(old int, name string) error { return unix.Linkat(old, name, fd, base, 0) })
	})
	// Not supported by the file system, or not permitted for other users' files
	// (proc_sys_fs(5), protected_hardlinks).
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EMLINK) {
		return r.RenameNew(from, to)
	}
	return err
}

// Names returns the names in a directory that begin with prefix, sorted.
func (r *Root) Names(dir, prefix string) ([]string, error) {
	f, err := r.openDir(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("read directory %s: %w", dir, err)
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, prefix) })
	slices.Sort(names)
	return names, nil
}

func (r *Root) openDir(dir string) (*os.File, error) {
	at, base, err := r.parent(dir)
	if err != nil {
		return nil, err
	}
	fd, err := retry(func() (int, error) {
		return unix.Openat(at, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// Lock locks a directory against other processes. The error wraps unix.EWOULDBLOCK if one
// of them has locked it.
func (r *Root) Lock(dir string) (unlock func() error, err error) {
	f, err := r.openDir(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(&os.PathError{Op: "lock", Path: dir, Err: err}, f.Close())
	}
	return f.Close, nil
}

// RemoveAll removes a directory and everything in it, or a file.
func (r *Root) RemoveAll(name string) error {
	e, err := r.Lstat(name)
	if err != nil || e.Kind == Missing {
		return err
	}
	if e.Kind != Dir {
		return r.Unlink(name)
	}
	names, err := r.Names(name, "")
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := r.RemoveAll(name + "/" + n); err != nil {
			return err
		}
	}
	return r.Rmdir(name)
}
