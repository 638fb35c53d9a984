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

// Files in the folder that name what stays out of its image. The second is read
// after the first and may take back what that left out.
const (
	dockerIgnore = ".dockerignore"
	bottleIgnore = ".bottleignore"
)

// gitDir is where git's own files are; of a worktree or a submodule it is a file
// that says where they are.
const gitDir = ".git"

// whiteout begins the names by which a layer says that something is deleted
// (image-spec, layer.md): no file can be called so in one.
const whiteout = ".wh."

// tree is what a folder holds, in the order in which a layer has it: parents
// first, names sorted.
type tree struct {
	root    *os.File
	entries []treeEntry
	notices []string
	bytes   int64 // of regular files
	// newest is when something in it changed last.
	newest time.Time
	ignore *patternmatcher.PatternMatcher
}

type treeEntry struct {
	name string // relative, with slashes; "." is the folder itself
	link string // target of a symbolic link
	stat unix.Stat_t
}

// beneath is how everything in the folder is opened: no symbolic link is
// followed, at any place of the path, and nothing above the folder is reached
// (openat2(2)).
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

func openBeneath(root *os.File, name string, flags uint64) (*os.File, error) {
	fd, err := openFD(root, name, flags)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// openFD is openBeneath for a file that is not worth an os.File, which costs
// several system calls more.
func openFD(root *os.File, name string, flags uint64) (int, error) {
	how := &unix.OpenHow{Flags: flags | unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: beneath}
	for {
		fd, err := unix.Openat2(int(root.Fd()), name, how)
		switch {
		case err == nil:
			return fd, nil
		// EAGAIN: something above was renamed meanwhile.
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		}
		return -1, &os.PathError{Op: "open", Path: name, Err: err}
	}
}

// readTree looks at all that the folder holds. It opens no file but the two of
// patterns. close must be called.
func readTree(folder string) (_ *tree, err error) {
	root, err := os.OpenFile(folder, os.O_RDONLY|unix.O_DIRECTORY, 0)
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
		return nil, fmt.Errorf("look at %s: %w", folder, err)
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

// readIgnore reads the patterns of both files. What .dockerignore says of .git
// is for images that are shipped: an agent has to be able to commit.
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
		return nil, fmt.Errorf("read the patterns of %s and %s: %w", dockerIgnore, bottleIgnore, err)
	}
	return m, nil
}

// maxIgnore bounds a file of patterns, in bytes.
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

// walk adds what is in the folder dir. held are folders above that are left
// out themselves, and come in with the first of their files that is not.
func (t *tree) walk(dir string, at *os.File, parent patternmatcher.MatchInfo, held []treeEntry) error {
	names, err := at.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("read folder %s: %w", dir, err)
	}
	slices.Sort(names)
	for _, base := range names {
		e := treeEntry{name: path.Join(dir, base)}
		err := unix.Fstatat(int(at.Fd()), base, &e.stat, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue // removed meanwhile
		}
		if err != nil {
			return fmt.Errorf("look at %s: %w", e.name, err)
		}
		if held, err = t.visit(e, at, base, parent, held); err != nil {
			return err
		}
	}
	return nil
}

// visit adds one entry, and what is below it. It returns what is still held.
func (t *tree) visit(e treeEntry, at *os.File, base string, parent patternmatcher.MatchInfo, held []treeEntry) ([]treeEntry, error) {
	isDir := e.stat.Mode&unix.S_IFMT == unix.S_IFDIR
	out, info, err := t.ignored(e.name, parent)
	if err != nil {
		return held, err
	}
	if out {
		if !isDir || !t.mayHold(e.name) {
			return held, nil
		}
		return held, t.descend(e, at, base, info, append(slices.Clone(held), e))
	}
	keep, err := t.representable(&e, at, base)
	if err != nil || !keep {
		return held, err
	}
	if e.name == gitDir && !isDir {
		t.notices = append(t.notices, gitDir+" only names a folder elsewhere, which is left out: git will not work inside")
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

func (t *tree) ignored(name string, parent patternmatcher.MatchInfo) (bool, patternmatcher.MatchInfo, error) {
	if t.ignore == nil {
		return false, parent, nil
	}
	out, info, err := t.ignore.MatchesUsingParentResults(name, parent)
	if err != nil {
		return false, info, fmt.Errorf("match %s with the patterns: %w", name, err)
	}
	return out, info, nil
}

// mayHold tells whether a folder that is left out may have something in it that
// is not, as docker tells it: by an exception that begins with its name.
func (t *tree) mayHold(dir string) bool {
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
		return fmt.Errorf("read folder %s: %w", e.name, err)
	}
	defer func() { _ = sub.Close() }()
	return t.walk(e.name, sub, info, held)
}

// representable tells whether a layer can hold the entry, and reads where a
// symbolic link leads. What cannot be held is left out with a notice.
func (t *tree) representable(e *treeEntry, at *os.File, base string) (bool, error) {
	var what string
	switch e.stat.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		what = "a socket"
	case unix.S_IFBLK, unix.S_IFCHR:
		what = "a device"
	case unix.S_IFLNK:
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(at.Fd()), base, target)
		if err != nil {
			return false, fmt.Errorf("read symbolic link %s: %w", e.name, err)
		}
		e.link = string(target[:n])
	}
	if strings.HasPrefix(base, whiteout) {
		what = "named like a layer's mark of deletion"
	}
	if what != "" {
		t.notices = append(t.notices, fmt.Sprintf("%s is left out: it is %s", e.name, what))
	}
	return what == "", nil
}

// fingerprint tells two states of the folder apart without reading its files:
// whoever changes one changes its ctime, which nobody can set. It begins with
// what else the layer depends on.
func (t *tree) fingerprint(depends ...string) string {
	h := sha256.New()
	var num [8]byte
	text := func(s string) {
		binary.LittleEndian.PutUint64(num[:], uint64(len(s)))
		h.Write(num[:])
		io.WriteString(h, s) //nolint:errcheck // a hash takes everything
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
