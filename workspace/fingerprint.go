package workspace

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// maxDepth bounds the nesting of directories that a fingerprint covers, and with it the
// number of open files. What an agent nests deeper counts as changed.
const maxDepth = 512

// Fingerprint identifies the state of the files in a mounted workspace, without reading
// them: every change of a file or directory updates its ctime, which cannot be set
// (inode(7)). It starts with the number of inodes in use, so that SameCount can rule out
// equality quickly. Files that are nested too deeply have a different fingerprint each
// time.
func Fingerprint(ctx context.Context, at string) (string, error) {
	inodes, err := usedInodes(at)
	if err != nil {
		return "", err
	}
	root, err := os.OpenFile(filepath.Join(at, Files), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", fmt.Errorf("read workspace: %w", err)
	}
	defer func() { _ = root.Close() }()
	f := &fingerprint{hash: sha256.New()}
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return "", fmt.Errorf("read workspace: %w", err)
	}
	f.add(".", &st)
	switch err := f.walk(ctx, root, 0); {
	case errors.Is(err, errTooDeep):
		return fmt.Sprintf("%d-%s", inodes, rand.Text()), nil
	case err != nil:
		return "", fmt.Errorf("read workspace: %w", err)
	}
	return fmt.Sprintf("%d-%s", inodes, hex.EncodeToString(f.hash.Sum(nil))), nil
}

// quickFingerprint is Fingerprint, but scans the files only if their number is that of one
// of the other fingerprints. Otherwise it returns one that differs from all others.
func quickFingerprint(ctx context.Context, at string, others ...string) (string, error) {
	inodes, err := usedInodes(at)
	if err != nil {
		return "", err
	}
	count := fmt.Sprintf("%d-", inodes)
	for _, o := range others {
		if len(o) > len(count) && o[:len(count)] == count {
			return Fingerprint(ctx, at)
		}
	}
	return count + rand.Text(), nil
}

// unknownState returns a fingerprint that differs from all others.
func unknownState() string { return "0-" + rand.Text() }

func usedInodes(at string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		return 0, fmt.Errorf("read workspace: %w", err)
	}
	return st.Files - st.Ffree, nil
}

var errTooDeep = errors.New("directories are nested too deeply")

type fingerprint struct{ hash hash.Hash }

func (f *fingerprint) add(name string, st *unix.Stat_t) {
	var num [8]byte
	for _, n := range []uint64{
		uint64(len(name)), uint64(st.Mode), uint64(st.Uid), uint64(st.Gid), uint64(st.Nlink), uint64(st.Size), st.Ino, st.Rdev, //nolint:unconvert // Nlink has 32 bits on arm64
		uint64(st.Mtim.Sec), uint64(st.Mtim.Nsec), uint64(st.Ctim.Sec), uint64(st.Ctim.Nsec),
	} {
		binary.LittleEndian.PutUint64(num[:], n)
		f.hash.Write(num[:])
	}
	f.hash.Write([]byte(name))
}

func (f *fingerprint) walk(ctx context.Context, dir *os.File, depth int) error {
	if depth > maxDepth {
		return errTooDeep
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := f.visit(ctx, dir, name, depth); err != nil {
			return err
		}
	}
	f.add("", &unix.Stat_t{}) // the end of the directory
	return nil
}

func (f *fingerprint) visit(ctx context.Context, dir *os.File, name string, depth int) error {
	var st unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil // removed meanwhile
	}
	if err != nil {
		return err
	}
	f.add(name, &st)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // replaced meanwhile
	}
	if err != nil {
		return err
	}
	sub := os.NewFile(uintptr(fd), name)
	defer func() { _ = sub.Close() }()
	return f.walk(ctx, sub, depth+1)
}
