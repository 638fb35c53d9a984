package images

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/moby/patternmatcher"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/asuser"
	"github.com/bot-bottle/bottle/internal/ignorefile"
)

// gitDir is git's metadata directory. In a worktree or submodule it is a file that
// contains the directory's path.
const gitDir = ".git"

// whiteout is the prefix of names that mark deletions in a layer (image-spec,
// layer.md). A layer cannot contain files with such names.
const whiteout = ".wh."

// tree is the content of a directory in layer order: parents first, names sorted.
type tree struct {
	root    *os.File
	entries []treeEntry
	notices []string
	bytes   int64 // total size of regular files
	// newest is the latest change time of all entries.
	newest time.Time
	ignore *patternmatcher.PatternMatcher
	caller asuser.User // whose rights are used
	denied []string    // what the caller may not read
}

type treeEntry struct {
	name string // relative path; "." is the directory itself
	link string // a symbolic link's target
	stat unix.Stat_t
}

// beneath are the openat2(2) flags for all files in the directory: no symbolic link
// is followed in any component of the path, and nothing outside can be reached.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

func openDirectory(root *os.File, name string) (*os.File, error) {
	fd, err := openFD(root, name, unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// openFD opens a file beneath root. It returns no os.File, which would cost several
// more system calls.
func openFD(root *os.File, name string, flags uint64) (int, error) {
	how := &unix.OpenHow{Flags: flags | unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: beneath}
	for {
		fd, err := unix.Openat2(int(root.Fd()), name, how)
		switch {
		case err == nil:
			return fd, nil
		// EAGAIN: a parent was renamed concurrently.
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		}
		return -1, &os.PathError{Op: "open", Path: name, Err: err}
	}
}

// ErrUnreadable means that the caller has no permission to read a part of the
// directory. bottle itself, being root, could read it.
var ErrUnreadable = ignorefile.ErrUnreadable

// ErrIgnoreLink means that an ignore file is a symbolic link that cannot be followed.
var ErrIgnoreLink = ignorefile.ErrLink

// readTree scans a directory with the rights of a user. It opens no files except the
// two ignore files. The error wraps ErrUnreadable, ErrIgnoreLink or the end of ctx.
// The caller must call close.
func readTree(ctx context.Context, dir string, caller asuser.User) (t *tree, err error) {
	err = asuser.Run(caller, func() error {
		t, err = scan(ctx, dir, caller)
		return err
	})
	return t, err
}

func scan(ctx context.Context, dir string, caller asuser.User) (_ *tree, err error) {
	root, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if isDenied(err) {
		return nil, fmt.Errorf("%w: %s", ErrUnreadable, dir)
	}
	if err != nil {
		return nil, err
	}
	t := &tree{root: root, caller: caller}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	if t.ignore, err = ignorefile.Read(root); err != nil {
		return nil, err
	}
	e := treeEntry{name: "."}
	if err := unix.Fstat(int(root.Fd()), &e.stat); err != nil {
		return nil, fmt.Errorf("stat %s: %w", dir, err)
	}
	t.add(e)
	if err := t.walk(ctx, ".", root, patternmatcher.MatchInfo{}, nil); err != nil {
		return nil, err
	}
	if len(t.denied) > 0 {
		return nil, fmt.Errorf("%w: %s", ErrUnreadable, abbreviate(t.denied))
	}
	return t, nil
}

func isDenied(err error) bool { return errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) }

// maxNames is the number of names in an error.
const maxNames = 5

func abbreviate(names []string) string {
	if more := len(names) - maxNames; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:maxNames], ", "), more)
	}
	return strings.Join(names, ", ")
}

func (t *tree) close() error { return t.root.Close() }

func (t *tree) add(e treeEntry) {
	t.entries = append(t.entries, e)
	if e.stat.Mode&unix.S_IFMT == unix.S_IFREG {
		t.bytes += e.stat.Size
	}
	if c := time.Unix(e.stat.Ctim.Unix()); c.After(t.newest) {
		t.newest = c
	}
}

// walk adds the entries of the directory dir. held are excluded parent directories,
// which are added with the first entry below them that is included.
func (t *tree) walk(ctx context.Context, dir string, at *os.File, parent patternmatcher.MatchInfo, held []treeEntry) error {
	names, err := at.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("read directory %s: %w", dir, err)
	}
	slices.Sort(names)
	for _, base := range names {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		e := treeEntry{name: path.Join(dir, base)}
		err := unix.Fstatat(int(at.Fd()), base, &e.stat, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue // removed concurrently
		}
		if isDenied(err) { // the directory can be listed, but not searched
			t.denied = append(t.denied, dir)
			return nil
		}
		if err != nil {
			return fmt.Errorf("stat %s: %w", e.name, err)
		}
		if held, err = t.visit(ctx, e, at, base, parent, held); err != nil {
			return err
		}
	}
	return nil
}

// visit adds one entry and everything below it. It returns the directories that are
// still held.
func (t *tree) visit(ctx context.Context, e treeEntry, at *os.File, base string, parent patternmatcher.MatchInfo, held []treeEntry) ([]treeEntry, error) {
	isDir := e.stat.Mode&unix.S_IFMT == unix.S_IFDIR
	excluded, info, err := t.excluded(e.name, parent)
	if err != nil {
		return held, err
	}
	if excluded {
		if !isDir || !ignorefile.MayInclude(t.ignore, e.name) {
			return held, nil
		}
		return held, t.descend(ctx, e, at, base, info, append(slices.Clone(held), e))
	}
	keep, err := t.representable(&e, at, base)
	if err != nil || !keep {
		return held, err
	}
	if e.name == gitDir && !isDir {
		t.notices = append(t.notices, gitDir+" refers to a directory elsewhere, which is not included: git will not work inside the bottle")
	}
	if err := t.checkReadable(e, at, base); err != nil {
		return held, err
	}
	for _, h := range held {
		t.add(h)
	}
	t.add(e)
	if isDir {
		return nil, t.descend(ctx, e, at, base, info, nil)
	}
	return nil, nil
}

func (t *tree) excluded(name string, parent patternmatcher.MatchInfo) (bool, patternmatcher.MatchInfo, error) {
	if t.ignore == nil {
		return false, parent, nil
	}
	excluded, info, err := t.ignore.MatchesUsingParentResults(name, parent)
	if err != nil {
		return false, info, fmt.Errorf("match %s against ignore patterns: %w", name, err)
	}
	return excluded, info, nil
}

func (t *tree) descend(ctx context.Context, e treeEntry, at *os.File, base string, info patternmatcher.MatchInfo, held []treeEntry) error {
	sub, err := openDirectory(at, base)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if isDenied(err) {
		t.denied = append(t.denied, e.name)
		return nil
	}
	if err != nil {
		return fmt.Errorf("read directory %s: %w", e.name, err)
	}
	defer func() { _ = sub.Close() }()
	return t.walk(ctx, e.name, sub, info, held)
}

// representable reports whether a layer can contain the entry, and reads a symbolic
// link's target. Other entries are omitted with a notice.
func (t *tree) representable(e *treeEntry, at *os.File, base string) (bool, error) {
	var reason string
	switch e.stat.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		reason = "is a socket"
	case unix.S_IFBLK, unix.S_IFCHR:
		reason = "is a device"
	case unix.S_IFLNK:
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(at.Fd()), base, target)
		if err != nil {
			return false, fmt.Errorf("read symbolic link %s: %w", e.name, err)
		}
		e.link = string(target[:n])
	}
	if strings.HasPrefix(base, whiteout) {
		reason = "has the name of a layer's whiteout file"
	}
	if reason != "" {
		t.notices = append(t.notices, fmt.Sprintf("%s is not included: it %s", e.name, reason))
	}
	return reason == "", nil
}

// checkReadable records a file that the caller may not read, so that all of them are
// reported together and before anything is packed.
func (t *tree) checkReadable(e treeEntry, at *os.File, base string) error {
	s := &e.stat
	if s.Mode&unix.S_IFMT != unix.S_IFREG || t.caller.UID == 0 || int(s.Uid) == t.caller.UID && s.Mode&unix.S_IRUSR != 0 {
		return nil
	}
	// AT_EACCESS: with the thread's current rights, not its real user id's.
	err := unix.Faccessat2(int(at.Fd()), base, unix.R_OK, unix.AT_EACCESS|unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case isDenied(err):
		t.denied = append(t.denied, e.name)
		return nil
	}
	return fmt.Errorf("check access to %s: %w", e.name, err)
}

// fingerprint identifies the state of the directory without reading its files: every
// change updates a file's ctime, which cannot be set. It includes the layer's other
// inputs.
func (t *tree) fingerprint(depends ...string) string {
	h := sha256.New()
	var num [8]byte
	text := func(s string) {
		binary.LittleEndian.PutUint64(num[:], uint64(len(s)))
		h.Write(num[:])
		io.WriteString(h, s) //nolint:errcheck // a hash never fails
	}
	for _, d := range depends {
		text(d)
	}
	for _, e := range t.entries {
		text(e.name)
		text(e.link)
		s := &e.stat
		for _, n := range []uint64{uint64(s.Mode), uint64(s.Size), s.Ino, uint64(s.Mtim.Sec), uint64(s.Mtim.Nsec), uint64(s.Ctim.Sec), uint64(s.Ctim.Nsec)} {
			binary.LittleEndian.PutUint64(num[:], n)
			h.Write(num[:])
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}
