package images

import (
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
	"github.com/moby/patternmatcher/ignorefile"
	"golang.org/x/sys/unix"
)

// Files in the directory with patterns of entries to exclude. The patterns of the
// second follow those of the first, so exceptions can include entries again.
const (
	dockerIgnore = ".dockerignore"
	bottleIgnore = ".bottleignore"
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
}

type treeEntry struct {
	name string // relative path; "." is the directory itself
	link string // a symbolic link's target
	stat unix.Stat_t
}

// beneath are the openat2(2) flags for all files in the directory: no symbolic link
// is followed in any component of the path, and nothing outside can be reached.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

func openBeneath(root *os.File, name string, flags uint64) (*os.File, error) {
	fd, err := openFD(root, name, flags)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// openFD is openBeneath without an os.File, which would cost several more system
// calls.
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

// readTree scans a directory. It opens no files except the two ignore files. The
// caller must call close.
func readTree(dir string) (_ *tree, err error) {
	root, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	t := &tree{root: root}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	if t.ignore, err = readIgnore(root); err != nil {
		return nil, err
	}
	e := treeEntry{name: "."}
	if err := unix.Fstat(int(root.Fd()), &e.stat); err != nil {
		return nil, fmt.Errorf("stat %s: %w", dir, err)
	}
	t.add(e)
	return t, t.walk(".", root, patternmatcher.MatchInfo{}, nil)
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

// readIgnore reads the patterns of both ignore files. Patterns of .dockerignore for
// .git are overridden: they are meant for images that are shipped, but an agent must
// be able to commit.
func readIgnore(root *os.File) (*patternmatcher.PatternMatcher, error) {
	patterns, err := readPatterns(root, dockerIgnore)
	if err != nil {
		return nil, err
	}
	if len(patterns) > 0 {
		patterns = append(patterns, "!"+gitDir)
	}
	more, err := readPatterns(root, bottleIgnore)
	if err != nil {
		return nil, err
	}
	if patterns = append(patterns, more...); len(patterns) == 0 {
		return nil, nil
	}
	m, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, fmt.Errorf("parse %s and %s: %w", dockerIgnore, bottleIgnore, err)
	}
	return m, nil
}

// maxIgnore bounds the size of an ignore file, in bytes.
const maxIgnore = 1 << 20

func readPatterns(root *os.File, name string) ([]string, error) {
	f, err := openBeneath(root, name, unix.O_NONBLOCK)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	patterns, err := ignorefile.ReadAll(io.LimitReader(f, maxIgnore))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return patterns, nil
}

// walk adds the entries of the directory dir. held are excluded parent directories,
// which are added with the first entry below them that is included.
func (t *tree) walk(dir string, at *os.File, parent patternmatcher.MatchInfo, held []treeEntry) error {
	names, err := at.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("read directory %s: %w", dir, err)
	}
	slices.Sort(names)
	for _, base := range names {
		e := treeEntry{name: path.Join(dir, base)}
		err := unix.Fstatat(int(at.Fd()), base, &e.stat, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue // removed concurrently
		}
		if err != nil {
			return fmt.Errorf("stat %s: %w", e.name, err)
		}
		if held, err = t.visit(e, at, base, parent, held); err != nil {
			return err
		}
	}
	return nil
}

// visit adds one entry and everything below it. It returns the directories that are
// still held.
func (t *tree) visit(e treeEntry, at *os.File, base string, parent patternmatcher.MatchInfo, held []treeEntry) ([]treeEntry, error) {
	isDir := e.stat.Mode&unix.S_IFMT == unix.S_IFDIR
	excluded, info, err := t.excluded(e.name, parent)
	if err != nil {
		return held, err
	}
	if excluded {
		if !isDir || !t.mayInclude(e.name) {
			return held, nil
		}
		return held, t.descend(e, at, base, info, append(slices.Clone(held), e))
	}
	keep, err := t.representable(&e, at, base)
	if err != nil || !keep {
		return held, err
	}
	if e.name == gitDir && !isDir {
		t.notices = append(t.notices, gitDir+" refers to a directory elsewhere, which is not included: git will not work inside the bottle")
	}
	for _, h := range held {
		t.add(h)
	}
	t.add(e)
	if isDir {
		return nil, t.descend(e, at, base, info, nil)
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

// mayInclude reports whether an excluded directory may contain included entries: as in
// docker, whether an exception pattern begins with its name.
func (t *tree) mayInclude(dir string) bool {
	for _, p := range t.ignore.Patterns() {
		if p.Exclusion() && (strings.HasPrefix(p.String()+"/", dir+"/") || strings.HasPrefix(p.String(), "**")) {
			return true
		}
	}
	return false
}

func (t *tree) descend(e treeEntry, at *os.File, base string, info patternmatcher.MatchInfo, held []treeEntry) error {
	sub, err := openBeneath(at, base, unix.O_DIRECTORY)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read directory %s: %w", e.name, err)
	}
	defer func() { _ = sub.Close() }()
	return t.walk(e.name, sub, info, held)
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
