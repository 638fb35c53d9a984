package caller

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/bot-bottle/bottle/internal/asuser"
	"github.com/bot-bottle/bottle/internal/hint"
)

// Caller is the invoking user's side: under sudo, SUDO_USER's.
type Caller struct {
	Getenv  func(string) (string, bool) // os.LookupEnv
	WorkDir string                      // absolute
	Home    string                      // absolute; of the invoking user, not root's under sudo
	UID     int
	GID     int
	Groups  []int // supplementary groups
	// Environ is the caller's environment, for credential helpers; nil: this
	// process's.
	Environ []string
}

// User is the caller for package asuser: with its rights bottle reads files on the
// caller's behalf.
func (c Caller) User() asuser.User { return asuser.User{UID: c.UID, GID: c.GID, Groups: c.Groups} }

// path resolves a path that the user wrote: ~ is the invoking user's home, and
// what is not absolute stands in dir.
func (c Caller) Path(written, dir string) string {
	switch {
	case written == "~":
		return c.Home
	case strings.HasPrefix(written, "~/"):
		return filepath.Join(c.Home, written[2:])
	case filepath.IsAbs(written):
		return filepath.Clean(written)
	}
	return filepath.Join(dir, written)
}

// readPrivate reads a file that holds a secret. As bottle runs as root, and a
// manifest may be somebody else's, the file has to be the caller's own and
// nobody else's to read.
func (c Caller) ReadPrivate(path string, limit int64) ([]byte, error) {
	f, err := c.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("there is no file %s", path)
	}
	if errors.Is(err, os.ErrPermission) {
		return nil, &hint.Error{Err: fmt.Errorf("cannot read %s: permission denied", path), Hint: "name a file that belongs to you"}
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	switch {
	case !ok || c.UID != 0 && int(st.Uid) != c.UID:
		return nil, &hint.Error{Err: fmt.Errorf("%s is not your own file", path), Hint: "name one that belongs to you"}
	case fi.Mode().Perm()&0o077 != 0:
		return nil, &hint.Error{
			Err:  fmt.Errorf("%s can be read by others (mode %04o)", path, fi.Mode().Perm()),
			Hint: "chmod 600 " + path,
		}
	case fi.Size() > limit:
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return io.ReadAll(io.LimitReader(f, limit))
}

// DockerConfigDir is where `docker login` keeps what it is told.
func (c Caller) DockerConfigDir() string {
	if dir, ok := c.Getenv("DOCKER_CONFIG"); ok && dir != "" {
		return dir
	}
	if c.Home == "" {
		return ""
	}
	return filepath.Join(c.Home, ".docker")
}

func (c Caller) Environment() []string {
	if c.Environ == nil {
		return os.Environ()
	}
	return c.Environ
}

// makeInHome makes a folder below the invoking user's home, and those above it,
// all of them theirs. Links that they put there lead nowhere else.
func (c Caller) MakeInHome(dir string) error {
	root, err := os.OpenRoot(c.Home)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	made := "."
	for _, part := range strings.Split(dir, string(filepath.Separator)) {
		made = filepath.Join(made, part)
		err := root.Mkdir(made, 0o755)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err == nil {
			err = root.Lchown(made, c.UID, c.GID)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
