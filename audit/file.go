package audit

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// file appends a line to a file for each event. It is opened each time, so that it can be
// rotated while bottles run. There is no lock: a process that is stopped while it holds
// one would block those of other users.
type file struct{ path string }

func (f file) write(_ *record, line []byte) error {
	// Not blocking, or a FIFO without a reader would hang.
	fd, err := unix.Open(f.path, unix.O_RDWR|unix.O_APPEND|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "open", Path: f.path, Err: err}
	}
	out := os.NewFile(uintptr(fd), f.path)
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil {
		err = safe(&st)
	}
	if err == nil {
		err = appendLine(out, st.Size, line)
	}
	return errors.Join(err, out.Close())
}

// safe checks that nobody but the owner of this process can have written a file.
func safe(st *unix.Stat_t) error {
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return errors.New("not a regular file")
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("the file belongs to user %d", st.Uid)
	case st.Mode&0o022 != 0:
		return fmt.Errorf("the file is writable by others (mode %04o)", st.Mode&0o7777)
	case st.Nlink != 1:
		return errors.New("the file has other names (hard links)")
	}
	return nil
}

// appendLine writes a line with one system call, so that lines of several processes do
// not mix. After a write that a full disk has cut short, a new line is begun.
func appendLine(f *os.File, size int64, line []byte) error {
	data := slices.Concat(line, []byte{'\n'})
	if size > 0 {
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, size-1); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if last[0] != '\n' {
			data = append([]byte{'\n'}, data...)
		}
	}
	_, err := f.Write(data)
	return err
}
