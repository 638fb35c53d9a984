// Package ignorefile reads the patterns of what a copy of a directory leaves out.
package ignorefile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

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

// ErrLink means that an ignore file is a symbolic link that cannot be followed: without
// its patterns, files that should stay out would be included.
var ErrLink = errors.New("invalid link of an ignore file")

// ErrUnreadable means that the user has no permission to read an ignore file.
var ErrUnreadable = errors.New("no permission to read")

// Read reads the patterns of both ignore files of an open directory, with the rights of
// the calling thread; nil: there are none. Patterns of .dockerignore for
// .git are overridden: they are meant for images that are shipped, but an agent must
// be able to commit.
func Read(root *os.File) (*patternmatcher.PatternMatcher, error) {
	patterns, err := readPatterns(root, dockerIgnore)
	if err != nil {
		return nil, err
	}
	if len(patterns) > 0 {
		patterns = append(patterns, "!.git")
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
	f, err := openIgnore(root, name)
	if f == nil || err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	patterns, err := ignorefile.ReadAll(io.LimitReader(f, maxIgnore+1))
	if err == nil {
		err = checkSize(f)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return patterns, nil
}

// checkSize rejects a file of which only a part was read.
func checkSize(f *os.File) error {
	fi, err := f.Stat()
	if err == nil && fi.Size() > maxIgnore {
		err = errors.New("larger than 1 MiB")
	}
	return err
}

// openIgnore opens an ignore file, or returns nil if there is none. As in BuildKit, it
// may be a symbolic link to a file in the directory.
func openIgnore(root *os.File, name string) (*os.File, error) {
	var st unix.Stat_t
	err := unix.Fstatat(int(root.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("stat %s: %w", name, err)
	}
	path := name
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		if path, err = followIgnore(root, name); err != nil {
			return nil, err
		}
		if err := unix.Fstatat(int(root.Fd()), path, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, fmt.Errorf("stat %s: %w", path, err)
		}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG { // opening a FIFO would have side effects
		return nil, fmt.Errorf("read %s: not a regular file", name)
	}
	f, err := openBeneath(root, path)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("%w: %s", ErrUnreadable, name)
	}
	return f, err
}

// followIgnore returns the path, relative to the directory and without links, that an
// ignore file links to.
func followIgnore(root *os.File, name string) (string, error) {
	link, err := os.Readlink(filepath.Join(root.Name(), name))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", name, err)
	}
	dir, err := filepath.EvalSymlinks(root.Name())
	if err != nil {
		return "", fmt.Errorf("read %s: %w", name, err)
	}
	target, err := filepath.EvalSymlinks(filepath.Join(dir, name))
	if err != nil {
		return "", fmt.Errorf("%w: %s links to %q: %w", ErrLink, name, link, err)
	}
	path, err := filepath.Rel(dir, target)
	if err != nil || path == ".." || strings.HasPrefix(path, "../") {
		return "", fmt.Errorf("%w: %s links to %q, outside the directory", ErrLink, name, link)
	}
	return path, nil
}

// openBeneath opens a file with no symbolic link in any component of its path.
func openBeneath(root *os.File, name string) (*os.File, error) {
	how := &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(int(root.Fd()), name, how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), name), nil
		// EAGAIN: a parent was renamed concurrently.
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		}
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
}

// MayInclude reports whether a directory that the patterns exclude may contain entries
// that they include: as in docker, whether an exception pattern begins with its name.
func MayInclude(m *patternmatcher.PatternMatcher, dir string) bool {
	for _, p := range m.Patterns() {
		if p.Exclusion() && (strings.HasPrefix(p.String()+"/", dir+"/") || strings.HasPrefix(p.String(), "**")) {
			return true
		}
	}
	return false
}
