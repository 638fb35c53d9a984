package caller

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/asuser"
)

// ErrNotRegular is returned for a file that is not a regular one.
var ErrNotRegular = errors.New("not a regular file")

// Do calls fn with the caller's rights, see asuser.Run.
func (c Caller) Do(fn func() error) error { return asuser.Run(c.User(), fn) }

// Stat is os.Stat with the caller's rights.
func (c Caller) Stat(path string) (fi os.FileInfo, err error) {
	err = c.Do(func() error {
		fi, err = os.Stat(path)
		return err
	})
	return fi, err
}

// EvalSymlinks is filepath.EvalSymlinks with the caller's rights.
func (c Caller) EvalSymlinks(path string) (real string, err error) {
	err = c.Do(func() error {
		real, err = filepath.EvalSymlinks(path)
		return err
	})
	return real, err
}

// Open opens a regular file for reading with the caller's rights. Other kinds of files
// are not opened at all: that alone releases the writer of a FIFO and can start a
// device.
func (c Caller) Open(path string) (f *os.File, err error) {
	err = c.Do(func() error {
		f, err = OpenRegular(path)
		return err
	})
	return f, err
}

// ReadRegular reads a regular file with the caller's rights, at most limit bytes of it.
func (c Caller) ReadRegular(path string, limit int64) ([]byte, error) {
	f, err := c.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only
	return io.ReadAll(io.LimitReader(f, limit))
}

// OpenRegular opens a regular file for reading, with the rights of the calling thread.
// Other kinds of files are not opened, as in Open.
func OpenRegular(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("%s is %w", path, ErrNotRegular)
	}
	// The descriptor cannot be read; its link in /proc names the same file, whatever
	// the path names by now (open(2), O_PATH).
	opened, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(opened), path), nil
}
