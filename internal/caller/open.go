package caller

import (
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/asuser"
)

// Open opens a regular file for reading with the caller's rights. Other kinds of files
// are not opened at all: that alone releases the writer of a FIFO and can start a
// device.
func (c Caller) Open(path string) (f *os.File, err error) {
	err = asuser.Run(c.User(), func() error {
		f, err = openRegular(path)
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

func openRegular(path string) (*os.File, error) {
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
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	// The descriptor cannot be read; its link in /proc names the same file, whatever
	// the path names by now (open(2), O_PATH).
	opened, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(opened), path), nil
}
