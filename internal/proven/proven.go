// Package proven remembers on tmpfs that a check of this host has succeeded, so that the
// next run need not repeat it. A record contains a sum of everything that the check depends
// on, and counts only if that is exactly the same now. A launch writes it, whose success has
// proved more than the check; planning only reads it. A record that is missing, damaged or
// somebody else's means that the check is done, so that nothing depends on a record but time.
//
// Records do not outlive a boot, because tmpfs does not.
package proven

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Dir is the directory of the records in the run directory. The name of a containerd
// namespace, which other directories have there, never begins with a dot.
const Dir = ".proven"

// Known reports whether there is a record that a check of a subject has succeeded with the
// same evidence. runDir is the run directory.
func Known(runDir, subject, evidence string) bool {
	dir := filepath.Join(runDir, Dir)
	// Others could otherwise replace the file, whoever owns it.
	if !private(dir, unix.S_IFDIR) {
		return false
	}
	var fsys unix.Statfs_t
	if unix.Statfs(dir, &fsys) != nil || fsys.Type != unix.TMPFS_MAGIC && fsys.Type != unix.RAMFS_MAGIC {
		return false
	}
	file := filepath.Join(dir, subject)
	if !private(file, unix.S_IFREG) {
		return false
	}
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }() // nothing was written
	want := sum(evidence)
	got, err := io.ReadAll(io.LimitReader(f, int64(len(want)+1)))
	return err == nil && string(got) == want
}

// Write records that a check of a subject, which is a file name, has succeeded with the
// evidence. It replaces the subject's record. The run directory must exist, on tmpfs.
func Write(runDir, subject, evidence string) error {
	dir := filepath.Join(runDir, Dir)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("record a check: %w", err)
	}
	// One name for all writers, so that killed ones leave one file. What concurrent writers
	// mix up is no record.
	temporary := filepath.Join(dir, "."+subject)
	err := os.WriteFile(temporary, []byte(sum(evidence)), 0o600)
	if err == nil {
		err = os.Rename(temporary, filepath.Join(dir, subject))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // renamed by another writer, or forgotten
		return fmt.Errorf("record a check: %w", err)
	}
	return nil
}

// Forget removes all records.
func Forget(runDir string) error {
	if err := os.RemoveAll(filepath.Join(runDir, Dir)); err != nil {
		return fmt.Errorf("remove the records of checks: %w", err)
	}
	return nil
}

// File identifies the content of a file, following links. The time of change cannot be set,
// so that another content has another identity.
func File(path string) (string, error) {
	id, err := Content(path)
	if err != nil {
		return "", err
	}
	return path + " " + id, nil
}

// Content is File without the path: a file has it under all of its paths.
func Content(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", fmt.Errorf("identify %s: %w", path, err)
	}
	// A list makes two for each bottle.
	id := make([]byte, 0, 128)
	for _, n := range []uint64{st.Dev, st.Ino, uint64(st.Mode), uint64(st.Uid), uint64(st.Size)} {
		id = append(strconv.AppendUint(id, n, 10), ' ')
	}
	id = appendTime(append(appendTime(id, st.Mtim), ' '), st.Ctim)
	return string(id), nil
}

func appendTime(id []byte, t unix.Timespec) []byte {
	id = strconv.AppendInt(append(id, '{'), t.Sec, 10)
	return append(strconv.AppendInt(append(id, ' '), t.Nsec, 10), '}')
}

func sum(evidence string) string {
	s := sha256.Sum256([]byte(evidence))
	return hex.EncodeToString(s[:])
}

// private reports whether a file of a kind belongs to this process's user, and nobody else
// can change it.
func private(path string, kind uint32) bool {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	return err == nil && st.Mode&unix.S_IFMT == kind && int(st.Uid) == os.Geteuid() && st.Mode&0o022 == 0
}
