package main

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDescriptorZeroStaysOpen: after variables were read from descriptor 0, no other
// file gets its number, because the session reads from it.
func TestDescriptorZeroStaysOpen(t *testing.T) {
	before, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Dup3(before, 0, 0); err != nil {
			t.Error(err)
		}
		if err := unix.Close(before); err != nil {
			t.Error(err)
		}
	}()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Dup3(int(r.Fd()), 0, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString("A=1\x00"); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := readEnvFile(func() (*os.File, error) { return descriptor(0) })
	if err != nil || text != "A=1\x00" {
		t.Errorf("read %q, %v", text, err)
	}
	later, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = later.Close() }()
	if later.Fd() == 0 {
		t.Error("the next file has the number of standard input")
	}
	if rest, err := io.ReadAll(os.Stdin); err != nil || len(rest) != 0 {
		t.Errorf("the session's input is %q, %v", rest, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// TestDescriptorOfAnother: a descriptor that this process has opened itself, or that cannot
// be read, is not one that the caller has left open. The control is one that is.
func TestDescriptorOfAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vars")
	if err := os.WriteFile(path, []byte("A=1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		flags int
		want  bool
	}{
		{"left open", unix.O_RDONLY, true},
		{"its own", unix.O_RDONLY | unix.O_CLOEXEC, false},
		{"only for writing", unix.O_WRONLY, false},
		{"only a path", unix.O_PATH, false},
	} {
		fd, err := unix.Open(path, c.flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		f, err := descriptor(fd)
		if (err == nil) != c.want {
			t.Errorf("%s: %v", c.name, err)
		}
		if err != nil {
			_ = unix.Close(fd)
			continue
		}
		_ = f.Close()
	}
}
