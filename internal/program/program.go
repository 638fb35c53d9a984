// Package program writes the small programs that the bottle binary contains to the
// directories of bottles.
package program

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Program is a program that does a part of what bottle's own executable does, and starts
// faster and needs less memory.
type Program struct {
	// Open opens its content. If nil, Bottle is used.
	Open   func() (io.ReadCloser, error)
	Bottle string // path of bottle's own executable
}

// Write writes the program to a file in a directory on disk. It cannot be in /run, which
// some distributions (Debian) mount noexec: gVisor cannot execute such a file either,
// because it maps it with the host's mmap(2). If the directory is on a file system that is
// mounted noexec as well, bottle's own executable is used. It returns the path on the host.
func (p Program) Write(dir, name string) (string, error) {
	if p.Open == nil {
		return p.Bottle, nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "", fmt.Errorf("check %s: %w", dir, err)
	}
	if st.Flags&unix.ST_NOEXEC != 0 {
		return p.Bottle, nil
	}
	file := filepath.Join(dir, name)
	if err := p.copyTo(file); err != nil {
		return "", fmt.Errorf("write %s program: %w", name, err)
	}
	return file, nil
}

func (p Program) copyTo(file string) (err error) {
	in, err := p.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.CopyBuffer(struct{ io.Writer }{out}, in, make([]byte, 1<<20))
	return err
}
