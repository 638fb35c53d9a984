package filetree

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Unpacking describes how an archive is unpacked.
type Unpacking struct {
	// As replaces "." at the beginning of the archive's names; empty: ".".
	As string
	// UID and GID own the files; -1: the process does.
	UID, GID int
	// Limits of the sum of the sizes of regular files, in bytes, and of the number of
	// entries; 0: none.
	MaxBytes, MaxEntries int64
	// Outward accepts symbolic links that lead out of the root. They are created, and
	// not followed.
	Outward bool
	// Git accepts git's own directories, whose configuration and hooks name programs.
	Git bool
	// Replace removes files that are in the way, but no directories.
	Replace bool
	// Notice is called for what is left out.
	Notice func(name, reason string)
}

// ErrTooLarge means that an archive exceeds a limit.
var ErrTooLarge = errors.New("too large")

// unpacker is one unpacking. It sets the modes and times of directories at the end:
// creating files changes the times, and a mode may not permit creating files.
type unpacker struct {
	Unpacking
	root    *Root
	bytes   int64
	entries int64
	dirs    []dirMeta
	buf     []byte
}

type dirMeta struct {
	name string
	head *tar.Header
}

// Unpack writes the files of an archive below the root. It follows no symbolic links,
// neither existing ones nor those of the archive. After an error a part of the files
// exists.
func Unpack(root *Root, r io.Reader, o Unpacking) error {
	if o.As == "" {
		o.As = "."
	}
	if o.Notice == nil {
		o.Notice = func(string, string) {}
	}
	u := &unpacker{Unpacking: o, root: root, buf: make([]byte, 128<<10)}
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return u.finish()
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		if err := u.entry(t, h); err != nil {
			return err
		}
	}
}

func (u *unpacker) entry(t *tar.Reader, h *tar.Header) error {
	name := filepath.Clean(h.Name)
	if u.As != "." {
		name = filepath.Join(u.As, name)
	}
	// Of "../x" Join with As would keep something: check the archive's own name.
	if err := CheckName(filepath.Clean(h.Name)); err != nil {
		return err
	}
	if err := CheckName(name); err != nil {
		return err
	}
	if u.entries++; u.MaxEntries > 0 && u.entries > u.MaxEntries {
		return fmt.Errorf("%w: more than %d files", ErrTooLarge, u.MaxEntries)
	}
	if !u.Git && IsGit(filepath.Clean(h.Name)) {
		u.Notice(name, "belongs to a git repository, whose settings can start programs")
		return nil
	}
	var err error
	switch h.Typeflag {
	case tar.TypeReg:
		err = u.file(t, h, name)
	case tar.TypeDir:
		err = u.mkdir(h, name)
	case tar.TypeSymlink:
		err = u.symlink(h, name)
	default:
		u.Notice(name, "is not a regular file, a directory or a symbolic link")
	}
	if err != nil {
		return fmt.Errorf("write %.300q: %w", name, err)
	}
	return nil
}

// clear removes a file that is in the way of a new one.
func (u *unpacker) clear(at int, base string) error {
	if !u.Replace {
		return nil
	}
	err := unix.Unlinkat(at, base, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func (u *unpacker) file(t io.Reader, h *tar.Header, name string) (err error) {
	if u.bytes += h.Size; h.Size < 0 || u.bytes < 0 || u.MaxBytes > 0 && u.bytes > u.MaxBytes {
		return fmt.Errorf("%w: more than %d bytes", ErrTooLarge, u.MaxBytes)
	}
	at, base, err := u.root.parent(name)
	if err != nil {
		return err
	}
	if err := u.clear(at, base); err != nil {
		return err
	}
	fd, err := retry(func() (int, error) {
		return unix.Openat(at, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if err := WriteSparse(fd, t, h.Size, u.buf); err != nil {
		return err
	}
	if u.UID >= 0 {
		if err := unix.Fchown(fd, u.UID, u.GID); err != nil {
			return err
		}
	}
	if err := unix.Fchmod(fd, uint32(h.Mode)&0o777); err != nil {
		return err
	}
	return unix.UtimesNanoAt(at, base, times(h), unix.AT_SYMLINK_NOFOLLOW)
}

// WriteSparse copies size bytes to a new file. Blocks of zeros become holes, so that a
// sparse file does not fill the disk.
func WriteSparse(fd int, r io.Reader, size int64, buf []byte) error {
	for at := int64(0); at < size; {
		n, err := io.ReadFull(r, buf[:min(int64(len(buf)), size-at)])
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		for part := range slices.Chunk(buf[:n], 4096) {
			if !isZero(part) {
				if err := writeAt(fd, part, at); err != nil {
					return err
				}
			}
			at += int64(len(part))
		}
	}
	return unix.Ftruncate(fd, size)
}

var zeroBlock [4096]byte

func isZero(p []byte) bool { return bytes.Equal(p, zeroBlock[:len(p)]) }

func writeAt(fd int, p []byte, at int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, at)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			p, at = p[n:], at+int64(n)
		}
	}
	return nil
}

func times(h *tar.Header) []unix.Timespec {
	t := unix.NsecToTimespec(h.ModTime.UnixNano())
	return []unix.Timespec{t, t}
}

func (u *unpacker) mkdir(h *tar.Header, name string) error {
	if name == "." {
		return nil // exists, with the attributes that its creator chose
	}
	at, base, err := u.root.parent(name)
	if err != nil {
		return err
	}
	err = unix.Mkdirat(at, base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		var e Entry
		if e, err = describe(at, base, name); err == nil && e.Kind == Dir {
			return nil // an existing directory keeps its attributes
		}
		if err == nil {
			err = unix.EEXIST
		}
	}
	if err != nil {
		return err
	}
	u.dirs = append(u.dirs, dirMeta{name, h})
	if u.UID < 0 {
		return nil
	}
	return unix.Fchownat(at, base, u.UID, u.GID, unix.AT_SYMLINK_NOFOLLOW)
}

func (u *unpacker) symlink(h *tar.Header, name string) error {
	if !u.Outward && LeadsOut(name, h.Linkname) {
		u.Notice(name, fmt.Sprintf("is a link that leads out: %.200q", h.Linkname))
		return nil
	}
	at, base, err := u.root.parent(name)
	if err != nil {
		return err
	}
	if err := u.clear(at, base); err != nil {
		return err
	}
	if err := unix.Symlinkat(h.Linkname, at, base); err != nil {
		return err
	}
	if u.UID >= 0 {
		if err := unix.Fchownat(at, base, u.UID, u.GID, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(at, base, times(h), unix.AT_SYMLINK_NOFOLLOW)
}

// finish sets modes and times of the new directories, the innermost first.
func (u *unpacker) finish() error {
	for _, d := range slices.Backward(u.dirs) {
		at, base, err := u.root.parent(d.name)
		if err == nil {
			var fd int
			fd, err = retry(func() (int, error) {
				return unix.Openat(at, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			})
			if err == nil {
				err = errors.Join(unix.UtimesNanoAt(at, base, times(d.head), unix.AT_SYMLINK_NOFOLLOW), unix.Fchmod(fd, uint32(d.head.Mode)&0o777), unix.Close(fd))
			}
		}
		if err != nil {
			return &os.PathError{Op: "set mode", Path: d.name, Err: err}
		}
	}
	return nil
}

// Place returns where a copy of a file goes, as `docker cp` and cp(1) decide it: the
// directory to unpack in, which exists, and the copy's name in it. source is the
// original's path; if it ends with "/." only the directory's content is copied.
func Place(dest, source string, isDir bool) (dir, name string, err error) {
	fi, err := os.Stat(dest)
	content := isDir && (source == "." || strings.HasSuffix(source, "/."))
	switch {
	case err == nil && fi.IsDir() && content:
		return dest, ".", nil
	case err == nil && fi.IsDir():
		base := filepath.Base(filepath.Clean(source))
		if base == "/" || base == "." || base == ".." {
			return dest, ".", nil
		}
		return dest, base, nil
	case err == nil && isDir:
		return "", "", fmt.Errorf("cannot copy a directory to the file %s", dest)
	case err == nil || errors.Is(err, os.ErrNotExist):
		if err != nil && !isDir && strings.HasSuffix(dest, "/") {
			return "", "", fmt.Errorf("no such directory: %s", dest)
		}
		dest = filepath.Clean(dest)
		dir = filepath.Dir(dest)
		if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
			return "", "", fmt.Errorf("no such directory: %s", dir)
		}
		return dir, filepath.Base(dest), nil
	}
	return "", "", err
}

// PeekDir reports whether an archive's first entry is a directory. It returns a reader of
// the complete archive.
func PeekDir(r io.Reader) (isDir bool, rest io.Reader, err error) {
	var seen bytes.Buffer
	h, err := tar.NewReader(io.TeeReader(r, &seen)).Next()
	if err != nil {
		return false, nil, fmt.Errorf("read archive: %w", err)
	}
	return h.Typeflag == tar.TypeDir, io.MultiReader(&seen, r), nil
}
