package caller

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func writeFile(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestOpenLeavesFIFO has a writer wait for a FIFO's reader. Reading for the caller must
// not let it go on; the control, a plain open, does.
func TestOpenLeavesFIFO(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	released := make(chan error, 1)
	go func() {
		f, err := os.OpenFile(fifo, os.O_WRONLY, 0)
		if err == nil {
			err = f.Close()
		}
		released <- err
	}()
	c := Caller{UID: os.Getuid(), GID: os.Getgid()}
	for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); {
		if _, err := c.ReadPrivate(fifo, 10); err == nil {
			t.Fatal("a FIFO was read")
		}
		if _, err := c.ReadRegular(fifo, 10); err == nil {
			t.Fatal("a FIFO was read")
		}
	}
	select {
	case err := <-released:
		t.Fatalf("the FIFO's writer was released: %v", err)
	default:
	}
	f, err := os.OpenFile(fifo, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := <-released; err != nil {
		t.Errorf("control: %v", err)
	}
}

// TestOpenWithCallersRights has root read for another user: a file of root's is refused
// to that user and, as the control, read for root.
func TestOpenWithCallersRights(t *testing.T) {
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	file := writeFile(t, filepath.Join(dir, "victim"), "text", 0o600)
	if data, err := (Caller{}).ReadRegular(file, 10); err != nil || string(data) != "text" {
		t.Errorf("control: root reads %q, %v", data, err)
	}
	// Without root there is no other user to be: the process reads with its own rights.
	if _, err := (Caller{UID: 4242, GID: 4242}).ReadRegular(file, 10); os.Getuid() == 0 && !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a file of root's is read for another user: %v", err)
	}
	if _, err := (Caller{}).ReadRegular(filepath.Join(dir, "none"), 10); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	if _, err := (Caller{}).ReadRegular(dir, 10); err == nil {
		t.Error("a directory is read")
	}
}
