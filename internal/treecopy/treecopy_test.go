package treecopy

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestDir copies a directory of all kinds of entries.
func TestDir(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "copy")
	old := time.Unix(1_700_000_000, 123_456_789)
	err := errors.Join(
		os.MkdirAll(filepath.Join(from, "dir/below"), 0o750),
		os.WriteFile(filepath.Join(from, "dir/file"), []byte("content"), 0o640),
		os.Symlink("/etc/passwd", filepath.Join(from, "link")),
		os.WriteFile(filepath.Join(from, "skipped"), nil, 0o600),
		os.WriteFile(filepath.Join(from, "dir/skipped"), nil, 0o600),
		syscall.Mkfifo(filepath.Join(from, "fifo"), 0o620),
		os.WriteFile(filepath.Join(from, "holes"), nil, 0o600),
		os.Truncate(filepath.Join(from, "holes"), 64<<20),
	)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(from, "holes"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("in the middle"), 32<<20); err != nil || f.Close() != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"dir/file", "dir/below", "dir", "holes"} {
		if err := os.Chtimes(filepath.Join(from, name), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if err := Dir(from, to, func(name string) bool { return name == "skipped" }); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(to, "skipped")); err == nil {
		t.Error("what is to be skipped was copied")
	}
	for _, name := range []string{".", "dir", "dir/below", "dir/file", "dir/skipped", "link", "fifo", "holes"} {
		a, aerr := os.Lstat(filepath.Join(from, name))
		b, berr := os.Lstat(filepath.Join(to, name))
		if aerr != nil || berr != nil {
			t.Fatal(aerr, berr)
		}
		if a.Mode() != b.Mode() || !a.ModTime().Equal(b.ModTime()) || a.Mode().IsRegular() && a.Size() != b.Size() {
			t.Errorf("%s: %v %v, and the copy %v %v", name, a.Mode(), a.ModTime(), b.Mode(), b.ModTime())
		}
	}
	if target, err := os.Readlink(filepath.Join(to, "link")); err != nil || target != "/etc/passwd" {
		t.Errorf("link: %q, %v", target, err)
	}
	a, aerr := os.ReadFile(filepath.Join(from, "holes"))
	b, berr := os.ReadFile(filepath.Join(to, "holes"))
	if aerr != nil || berr != nil || !bytes.Equal(a, b) {
		t.Error("the contents differ")
	}
	if fi, err := os.Stat(filepath.Join(to, "holes")); err != nil || fi.Sys().(*syscall.Stat_t).Blocks*512 > 1<<20 {
		t.Error("the copy has no holes")
	}
}
