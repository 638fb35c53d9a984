// Package caller describes the user who invoked bottle and accesses files with the
// rights of that user: bottle itself often runs as root.
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

// Caller is the user who invoked bottle, with environment and working directory.
// Under sudo it is the user who ran sudo.
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

// Owner returns the user ID that bottles and images of the caller belong to. It is 0,
// root, also in a process that is not root's: nobody shares its access.
func (c Caller) Owner() int {
	if os.Geteuid() != 0 {
		return 0
	}
	return c.UID
}

// User returns the caller for package asuser, which reads files with the caller's
// rights.
func (c Caller) User() asuser.User { return asuser.User{UID: c.UID, GID: c.GID, Groups: c.Groups} }

// Path resolves a path that the user wrote: ~ is the invoking user's home, and a
// relative path is relative to dir.
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

// Abs returns a path as the system calls resolve it: unlike in Path, ~ is a name.
func (c Caller) Abs(path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(c.WorkDir, path)
}

// ReadPrivate reads a file that contains a secret. As bottle runs as root, and a
// manifest may come from somebody else, the caller must own the file and nobody else
// may be able to read it.
func (c Caller) ReadPrivate(path string, limit int64) ([]byte, error) {
	f, err := c.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, missing{path}
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
		return nil, &hint.Error{Err: fmt.Errorf("%s belongs to another user", path), Hint: "use a file that you own"}
	case fi.Mode().Perm()&0o077 != 0:
		return nil, &hint.Error{
			Err:  fmt.Errorf("%s is readable by others (mode %04o)", path, fi.Mode().Perm()),
			Hint: "chmod 600 " + path,
		}
	case fi.Size() > limit:
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return io.ReadAll(io.LimitReader(f, limit))
}

// missing is os.ErrNotExist with the text of bottle's other errors.
type missing struct{ path string }

func (m missing) Error() string        { return "missing file " + m.path }
func (m missing) Is(target error) bool { return target == os.ErrNotExist }

// DockerConfigDir returns the directory in which `docker login` stores credentials,
// or an empty string if it is unknown.
func (c Caller) DockerConfigDir() string {
	if dir, ok := c.Getenv("DOCKER_CONFIG"); ok && dir != "" {
		return dir
	}
	if c.Home == "" {
		return ""
	}
	return filepath.Join(c.Home, ".docker")
}

// Environment returns the caller's environment variables as NAME=VALUE.
func (c Caller) Environment() []string {
	if c.Environ == nil {
		return os.Environ()
	}
	return c.Environ
}

// MakeInHome creates a directory below the invoking user's home, with missing parents and
// with that user's rights. Symbolic links cannot lead out of the home.
func (c Caller) MakeInHome(dir string) error {
	return c.Do(func() error { return makeInHome(c.Home, dir) })
}

func makeInHome(home, dir string) error {
	root, err := os.OpenRoot(home)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	made := "."
	for _, part := range strings.Split(dir, string(filepath.Separator)) {
		made = filepath.Join(made, part)
		if err := root.Mkdir(made, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}
