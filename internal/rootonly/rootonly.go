// Package rootonly reads files that only root can have written.
package rootonly

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/hint"
)

// MaxFile bounds a file's size, in bytes.
const MaxFile = 1 << 20

// Read reads a file that only root can have written: the file and the directories
// that lead to it belong to root and are not writable by others. Symbolic links are not
// followed at the end of the path.
func Read(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, &hint.Error{Err: fmt.Errorf("%s is a symbolic link", path), Hint: "replace it with a file"}
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer func() { _ = f.Close() }() // read only
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, &hint.Error{Err: fmt.Errorf("%s is not a regular file", path), Hint: "replace it with a file"}
	}
	if err := rootsOnly(path, &st); err != nil {
		return nil, err
	}
	if err := parentsRootsOnly(path); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err == nil && len(data) > MaxFile {
		err = fmt.Errorf("%s is larger than %d bytes", path, MaxFile)
	}
	return data, err
}

// parentsRootsOnly checks the directories that lead to a file.
func parentsRootsOnly(path string) error {
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			return &os.PathError{Op: "stat", Path: dir, Err: err}
		}
		if err := rootsOnly(dir, &st); err != nil {
			return err
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// Check returns an error with a hint if others than root can write to or replace a
// file or directory, or that which it is a symbolic link to. It wraps fs.ErrNotExist if
// there is none.
func Check(path string) error {
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(target, &st); err != nil {
		return &os.PathError{Op: "stat", Path: target, Err: err}
	}
	if err := rootsOnly(target, &st); err != nil {
		return err
	}
	if err := parentsRootsOnly(target); err != nil {
		return err
	}
	return parentsRootsOnly(filepath.Clean(path))
}

// TrustedOwner is the owner that files must have; tests change it.
var TrustedOwner = uint32(0)

// rootsOnly returns an error if others than root can write to a file or directory. Where
// the sticky bit is set, they cannot replace what is root's (inode(7)).
func rootsOnly(path string, st *unix.Stat_t) error {
	sticky := st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Mode&unix.S_ISVTX != 0
	switch {
	case st.Uid != TrustedOwner && st.Uid != 0:
		return &hint.Error{Err: fmt.Errorf("%s belongs to user %d, not to root", path, st.Uid), Hint: "chown root:root " + path}
	case st.Mode&0o002 != 0 && !sticky, st.Mode&0o020 != 0 && st.Gid != 0 && !sticky:
		return &hint.Error{
			Err:  fmt.Errorf("%s is writable by others than root (mode %04o)", path, st.Mode&0o7777),
			Hint: "chmod go-w " + path,
		}
	}
	return nil
}
