package atomicfile

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	old := syscall.Umask(0o077)
	t.Cleanup(func() { syscall.Umask(old) })
	for _, tt := range []struct {
		text string
		perm os.FileMode
	}{{"first", 0o600}, {"second, longer", 0o644}, {"", 0o440}} {
		if err := Write(path, []byte(tt.text), tt.perm); err != nil {
			t.Fatal(err)
		}
		checkFile(t, path, tt.text, tt.perm)
	}
	checkOnlyFile(t, dir)
}

func TestReplaceKeepsAttributes(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	const uid, gid = 12345, 23456
	if err := errors.Join(os.Chmod(path, 0o640), os.Chown(path, uid, gid)); err != nil {
		t.Fatal(err)
	}
	if err := Replace(path, []byte("new")); err != nil {
		t.Fatal(err)
	}
	fi := checkFile(t, path, "new", 0o640)
	if st := fi.Sys().(*syscall.Stat_t); st.Uid != uid || st.Gid != gid {
		t.Errorf("owner %d:%d, want %d:%d", st.Uid, st.Gid, uid, gid)
	}
	checkOnlyFile(t, dir)
	if err := Replace(filepath.Join(dir, "missing"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Replace of a missing file: %v", err)
	}
}

// After a failure the old file is unchanged and no temporary file is left.
func TestFailure(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := os.MkdirAll(filepath.Join(path, "not empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, []byte("new"), 0o600); err == nil {
		t.Error("Write replaced a directory")
	}
	checkOnlyFile(t, dir)
	if err := Write(filepath.Join(dir, "missing", "file"), nil, 0o600); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Write in a missing directory: %v", err)
	}
}

// Concurrent readers see complete contents only, whichever writer they are from.
func TestConcurrent(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	contents := [][]byte{bytes.Repeat([]byte("a"), 1<<16), bytes.Repeat([]byte("b"), 1<<12)}
	if err := Write(path, contents[0], 0o600); err != nil {
		t.Fatal(err)
	}
	var writers, reader sync.WaitGroup
	done := make(chan struct{})
	for _, data := range contents {
		writers.Go(func() {
			for range 50 {
				if err := Write(path, data, 0o600); err != nil {
					t.Error(err)
				}
			}
		})
	}
	reader.Go(func() {
		for {
			got, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(got, contents[0]) && !bytes.Equal(got, contents[1]) {
				t.Errorf("read %d bytes, error %v", len(got), err)
				return
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
	writers.Wait()
	close(done)
	reader.Wait()
	checkOnlyFile(t, dir)
}

func checkFile(t *testing.T, path, text string, perm os.FileMode) os.FileInfo {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(data) != text || fi.Mode().Perm() != perm {
		t.Errorf("file %q with mode %v, want %q with %v", data, fi.Mode().Perm(), text, perm)
	}
	return fi
}

// checkOnlyFile checks that no temporary file is left.
func checkOnlyFile(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || entries[0].Name() != "file" {
		t.Errorf("directory contains %v, want only one file", entries)
	}
}

// A file for another user never exists with another owner or mode under its name.
func TestWriteFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := WriteFor(path, []byte("x"), 0o400, os.Getuid()); err != nil {
		t.Fatal(err)
	}
	fi := checkFile(t, path, "x", 0o400)
	if st := fi.Sys().(*syscall.Stat_t); int(st.Uid) != os.Getuid() {
		t.Errorf("the owner is %d", st.Uid)
	}
}
