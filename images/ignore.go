package images

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

// ErrIgnoreLink means that an ignore file is a symbolic link that cannot be followed:
// without its patterns, files that should stay out would be included.
var ErrIgnoreLink = errors.New("invalid link of an ignore file")

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
	f, err := openBeneath(root, path, unix.O_NONBLOCK)
	if isDenied(err) {
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
		return "", fmt.Errorf("%w: %s links to %q: %w", ErrIgnoreLink, name, link, err)
	}
	path, err := filepath.Rel(dir, target)
	if err != nil || path == ".." || strings.HasPrefix(path, "../") {
		return "", fmt.Errorf("%w: %s links to %q, outside the directory", ErrIgnoreLink, name, link)
	}
	return path, nil
}
