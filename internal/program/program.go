// Package program writes the small programs that the bottle binary contains to the
// directories of bottles.
package program

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/proven"
)

// Program is a program that does a part of what bottle's own executable does, and starts
// faster and needs less memory.
type Program struct {
	// Open opens its content. If nil, Bottle is used.
	Open   func() (io.ReadCloser, error)
	Bottle string // path of bottle's own executable
	// Store is shared by all bottles.
	Store Store
}

// Store keeps one copy of each program, to which the files of bottles are hard links: they need
// no time to be written, and their pages are in memory once. The zero value keeps none.
type Store struct {
	Dir string // on the file system of the bottles' directories
	// ID identifies the content of all programs, see Identity.
	ID string
}

// storeDir contains the programs that bottles share, in the state directory.
const storeDir = ".programs"

// StoreIn returns the store in a state directory.
func StoreIn(stateDir, id string) Store { return Store{filepath.Join(stateDir, storeDir), id} }

// Forget removes the store of a state directory. Bottles keep their links, and the next one writes
// the programs again. A store on a disk that the kernel has made read-only stays: it is a cache,
// and no reason for a cleanup to fail that has found nothing else.
func Forget(stateDir string) error {
	err := os.RemoveAll(filepath.Join(stateDir, storeDir))
	if err != nil && !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("remove the programs that bottles share: %w", err)
	}
	return nil
}

// Identity returns an identifier of a file's content (proven.Content) that can be the name of a
// directory.
func Identity(path string) (string, error) {
	content, err := proven.Content(path)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(content))
	return hex.EncodeToString(sum[:16]), nil
}

// Write writes the program to a file in a directory on disk. It cannot be in /run, which
// some distributions (Debian) mount noexec: gVisor cannot execute such a file either,
// because it maps it with the host's mmap(2). If the directory is on a file system that is
// mounted noexec as well, bottle's own executable is used. It returns the path on the host.
// The file must never be written to.
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
	err := p.link(file, name)
	if err != nil { // also where the file system has no hard links
		err = p.copyTo(file)
	}
	if err != nil {
		return "", fmt.Errorf("write %s program: %w", name, err)
	}
	return file, nil
}

var errNoStore = errors.New("no store of programs")

// link makes file a link to the program in the store, to which it adds the program if needed.
func (p Program) link(file, name string) error {
	if p.Store.ID == "" {
		return errNoStore
	}
	dir := filepath.Join(p.Store.Dir, p.Store.ID)
	stored := filepath.Join(dir, name)
	if err := remove(file); err != nil {
		return err
	}
	err := os.Link(stored, file)
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	p.Store.removeOthers()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := p.add(dir, stored); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return os.Link(stored, file)
}

// add adds the program to the store. It is complete when it appears, because others use it at once,
// and nothing is left if the process is killed.
func (p Program) add(dir, stored string) error {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o755)
	if err != nil {
		return err
	}
	out := os.NewFile(uintptr(fd), stored)
	self := fmt.Sprintf("/proc/self/fd/%d", fd)
	// A file that is open for writing cannot be executed.
	in, err := os.Open(self)
	if err == nil {
		defer func() { _ = in.Close() }() // nothing was written
		err = p.copy(out)
	}
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", in.Fd()), unix.AT_FDCWD, stored, unix.AT_SYMLINK_FOLLOW)
}

// removeOthers removes the programs of other versions. The links to them remain, and a process that
// is about to make one copies its program. It reports no error: the next version tries again.
func (s Store) removeOthers() {
	entries, err := os.ReadDir(s.Dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.Name() != s.ID {
			_ = os.RemoveAll(filepath.Join(s.Dir, e.Name()))
		}
	}
}

// remove removes a file that may not exist. Others may have links to it, so that it must not be
// written to.
func remove(file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (p Program) copyTo(file string) error {
	if err := remove(file); err != nil {
		return err
	}
	out, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	return errors.Join(p.copy(out), out.Close())
}

func (p Program) copy(out *os.File) (err error) {
	in, err := p.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	_, err = io.CopyBuffer(struct{ io.Writer }{out}, in, make([]byte, 1<<20))
	return err
}
