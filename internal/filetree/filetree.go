// Package filetree lists, packs and unpacks directory trees without following a symbolic
// link below the root. The program inside a sandbox and bottle on the host use the same
// code and the same formats, so that an image needs neither tar nor git. What comes from
// a sandbox is untrusted: every reader is bounded, and nothing is written outside the
// root.
package filetree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Kind is the type of a file.
type Kind byte

// The kinds of files. Nothing but its name is known of an Other: a device, a socket, a
// FIFO, or a directory that is nested too deeply.
const (
	File    Kind = 'f'
	Dir     Kind = 'd'
	Link    Kind = 'l'
	Other   Kind = 'o'
	Missing Kind = '-'
)

// Entry describes one file.
type Entry struct {
	Name  string // relative path; "." is the root
	Kind  Kind
	Mode  uint32 // permission bits
	Size  int64  // of a regular file, in bytes
	MTime int64  // nanoseconds since 1970
	Link  string // a symbolic link's target
	Sum   string // SHA-256 of a regular file's content, 32 bytes; empty: not known
}

// Limits of names, in bytes and components. Linux limits the paths that system calls
// accept to PATH_MAX, 4096.
const (
	MaxName  = 4095
	MaxDepth = 250
)

// ErrName means that a name leads out of the root or cannot be a file's name.
var ErrName = errors.New("invalid file name")

// CheckName verifies that a name is relative, stays in the root and is in its shortest
// form.
func CheckName(name string) error {
	if len(name) > MaxName || strings.Count(name, "/") >= MaxDepth || strings.Contains(name, "\x00") ||
		!filepath.IsLocal(name) || filepath.Clean(name) != name {
		return fmt.Errorf("%w: %.200q", ErrName, name)
	}
	return nil
}

// Root is an open directory. Its methods follow no symbolic link, not even a parent's.
// It is not safe for concurrent use.
type Root struct {
	fd int
	// The parent directory of the last name, which is often the next one's as well.
	dir   string
	dirFD int
}

// Open opens a directory. Symbolic links in the path itself are followed.
func Open(path string) (*Root, error) {
	fd, err := retry(func() (int, error) {
		return unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &Root{fd: fd, dirFD: -1}, nil
}

// Close closes the directory.
func (r *Root) Close() error {
	r.forget()
	return unix.Close(r.fd)
}

// forget closes the cached directory. It must be called after a directory was removed or
// replaced.
func (r *Root) forget() {
	if r.dirFD >= 0 && r.dirFD != r.fd {
		_ = unix.Close(r.dirFD) // opened with O_PATH
	}
	r.dir, r.dirFD = "", -1
}

// parent returns the open parent directory of a name, and the name in it.
func (r *Root) parent(name string) (fd int, base string, err error) {
	if name == "." {
		return r.fd, ".", nil
	}
	if err := CheckName(name); err != nil {
		return -1, "", err
	}
	dir := filepath.Dir(name)
	base = filepath.Base(name)
	if dir == "." {
		return r.fd, base, nil
	}
	if r.dirFD >= 0 && r.dir == dir {
		return r.dirFD, base, nil
	}
	fd, err = r.descend(dir)
	if err != nil {
		return -1, "", &os.PathError{Op: "open", Path: dir, Err: err}
	}
	r.forget()
	r.dir, r.dirFD = dir, fd
	return fd, base, nil
}

// descend opens a directory component by component. openat2(2) would do this in one call,
// but gVisor does not have it.
func (r *Root) descend(dir string) (int, error) {
	at := r.fd
	for part := range strings.SplitSeq(dir, "/") {
		next, err := retry(func() (int, error) {
			return unix.Openat(at, part, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		})
		if at != r.fd {
			_ = unix.Close(at)
		}
		if err != nil {
			return -1, err
		}
		at = next
	}
	return at, nil
}

func retry(open func() (int, error)) (int, error) {
	for {
		fd, err := open()
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// Lstat describes a file. The Kind of one that does not exist is Missing.
func (r *Root) Lstat(name string) (Entry, error) {
	fd, base, err := r.parent(name)
	if err == nil {
		return describe(fd, base, name)
	}
	// A parent that is not a directory: the file does not exist.
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return Entry{Name: name, Kind: Missing}, nil
	}
	return Entry{}, err
}

func describe(fd int, base, name string) (Entry, error) {
	e := Entry{Name: name}
	var st unix.Stat_t
	err := unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		e.Kind = Missing
		return e, nil
	}
	if err != nil {
		return e, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	e.set(&st)
	if e.Kind == Link {
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(fd, base, target)
		if err != nil {
			return e, &os.PathError{Op: "readlink", Path: name, Err: err}
		}
		e.Link = string(target[:n])
	}
	return e, nil
}

// set takes over what stat(2) returned.
func (e *Entry) set(st *unix.Stat_t) {
	e.Mode, e.MTime, e.Size = st.Mode&0o7777, unix.TimespecToNsec(st.Mtim), 0
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Kind, e.Size = File, st.Size
	case unix.S_IFDIR:
		e.Kind = Dir
	case unix.S_IFLNK:
		e.Kind = Link
	default:
		e.Kind = Other
	}
}

// OpenFile opens a regular file for reading and describes it. Other kinds of files are
// not opened: O_NONBLOCK keeps a FIFO from blocking, and the check comes before any read.
func (r *Root) OpenFile(name string) (*os.File, Entry, error) {
	at, base, err := r.parent(name)
	if err != nil {
		return nil, Entry{}, err
	}
	e := Entry{Name: name}
	var st unix.Stat_t
	if err := unix.Fstatat(at, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, e, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	if e.set(&st); e.Kind != File { // opening a device can have effects
		return nil, e, &os.PathError{Op: "open", Path: name, Err: errNotRegular}
	}
	fd, err := retry(func() (int, error) {
		return unix.Openat(at, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, e, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	if err := unix.Fstat(fd, &st); err == nil {
		e.set(&st)
	}
	if e.Kind != File {
		return nil, e, errors.Join(&os.PathError{Op: "open", Path: name, Err: errNotRegular}, f.Close())
	}
	return f, e, nil
}

var errNotRegular = errors.New("not a regular file")

// ErrSkipDir is returned by the function that Walk calls to omit a directory's content.
var ErrSkipDir = errors.New("skip this directory")

// Walk calls fn for every file below name, which comes first, in the order of names. A
// directory that cannot be read or that is nested too deeply is passed as an Other.
func (r *Root) Walk(name string, fn func(Entry) error) error {
	at, base, err := r.parent(name)
	if err != nil {
		return err
	}
	e, err := describe(at, base, name)
	if err != nil {
		return err
	}
	if e.Kind == Missing {
		return &os.PathError{Op: "stat", Path: name, Err: unix.ENOENT}
	}
	return walk(at, base, e, 0, fn)
}

func walk(at int, base string, e Entry, depth int, fn func(Entry) error) error {
	if e.Kind != Dir {
		return fn(e)
	}
	if depth >= MaxDepth || len(e.Name) > MaxName-255 {
		e.Kind = Other
		return fn(e)
	}
	fd, err := retry(func() (int, error) {
		return unix.Openat(at, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if gone(err) {
		return nil // removed concurrently
	}
	if err != nil {
		e.Kind = Other
		return fn(e)
	}
	dir := os.NewFile(uintptr(fd), e.Name)
	defer func() { _ = dir.Close() }() // read only
	if err := fn(e); err != nil {
		if errors.Is(err, ErrSkipDir) {
			return nil
		}
		return err
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("read directory %s: %w", e.Name, err)
	}
	slices.Sort(names)
	for _, base := range names {
		child, err := describe(fd, base, filepath.Join(e.Name, base))
		if err != nil {
			return err
		}
		if child.Kind == Missing {
			continue
		}
		if err := walk(fd, base, child, depth+1, fn); err != nil {
			return err
		}
	}
	return nil
}

func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// IsGit reports whether a name has a component that a file system could take for git's
// directory: in any case, with characters that HFS+ ignores, or with the forms that NTFS
// has for it (git's path.c, is_ntfs_dotgit, and utf8.c, is_hfs_dotgit).
func IsGit(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if isGit(part) {
			return true
		}
	}
	return false
}

func isGit(part string) bool {
	part = strings.Map(func(c rune) rune {
		switch {
		case c >= 0x200c && c <= 0x200f, c >= 0x202a && c <= 0x202e, c >= 0x206a && c <= 0x206f, c == 0xfeff:
			return -1
		}
		return c
	}, part)
	part, _, _ = strings.Cut(part, ":") // an NTFS stream
	part = strings.TrimRight(strings.ToLower(part), " .")
	return part == ".git" || part == "git~1"
}

// LeadsOut reports whether a symbolic link with this name and target could lead out of
// the root. A parent reference is allowed at the start of the target only: later ones
// would be relative to whatever a link before them names.
func LeadsOut(name, target string) bool {
	if target == "" || filepath.IsAbs(target) {
		return true
	}
	depth := strings.Count(name, "/")
	rest := target
	for rest == ".." || strings.HasPrefix(rest, "../") {
		if depth--; depth < 0 {
			return true
		}
		rest = strings.TrimLeft(strings.TrimPrefix(rest, ".."), "/")
	}
	return slices.Contains(strings.Split(rest, "/"), "..")
}
