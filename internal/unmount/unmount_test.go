package unmount

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func mount(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4096"); err != nil {
		t.Fatal(err)
	}
}

// TestBelow mounts several file systems below a directory, also over each other and in
// one another, and one next to it.
func TestBelow(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "a b\\c\td")
	next := dir + "x"
	mount(t, dir)
	mount(t, filepath.Join(dir, "in"))
	mount(t, filepath.Join(dir, "in"))
	mount(t, filepath.Join(dir, "in", "deeper"))
	mount(t, next)
	t.Cleanup(func() {
		if err := Below(next); err != nil {
			t.Error(err)
		}
	})
	if got, err := List(dir); len(got) != 4 || err != nil {
		t.Fatalf("List = %q, %v", got, err)
	}
	for range 2 {
		if err := Below(dir); err != nil {
			t.Fatal(err)
		}
		if got, err := List(dir); len(got) != 0 || err != nil {
			t.Fatalf("left: %q, %v", got, err)
		}
	}
	if got, err := List(parent); !slices.Equal(got, []string{next}) || err != nil {
		t.Errorf("mounts elsewhere: %q, %v", got, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Error(err)
	}
}
