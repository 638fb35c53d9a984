package proven

import (
	"os"
	"path/filepath"
	"testing"
)

// runDir returns a run directory on tmpfs.
func runDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "proven-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func write(t *testing.T, dir, evidence string) {
	t.Helper()
	if err := Write(dir, "runsc", evidence); err != nil {
		t.Fatal(err)
	}
}

func TestKnown(t *testing.T) {
	dir := runDir(t)
	check := func(subject, evidence string, want bool) {
		t.Helper()
		if got := Known(dir, subject, evidence); got != want {
			t.Errorf("Known(%q, %q) = %v", subject, evidence, got)
		}
	}
	check("runsc", "a", false)
	write(t, dir, "a")
	check("runsc", "a", true)
	check("runsc", "b", false)
	check("runc", "a", false)
	write(t, dir, "b")
	check("runsc", "a", false)
	check("runsc", "b", true)
	if files, err := os.ReadDir(filepath.Join(dir, Dir)); err != nil || len(files) != 1 {
		t.Errorf("files of one subject: %v, %v", files, err)
	}
	if err := Forget(dir); err != nil {
		t.Error(err)
	}
	check("runsc", "b", false)
	if err := Forget(dir); err != nil {
		t.Errorf("without records: %v", err)
	}
}

// TestUnusable: whatever is wrong with a record, it is not one. The control is the record
// before the change.
func TestUnusable(t *testing.T) {
	for name, spoil := range map[string]func(dir, file string) error{
		"empty":          func(_, file string) error { return os.Truncate(file, 0) },
		"shorter":        func(_, file string) error { return os.Truncate(file, 63) },
		"longer":         func(_, file string) error { return os.WriteFile(file, []byte(sum("a")+"\n"), 0o600) },
		"other content":  func(_, file string) error { return os.WriteFile(file, []byte(sum("b")), 0o600) },
		"another user's": func(_, file string) error { return os.Chown(file, 1000, 1000) },
		"writable":       func(_, file string) error { return os.Chmod(file, 0o620) },
		"directory of another user": func(dir, _ string) error {
			return os.Chown(dir, 1000, 1000)
		},
		"writable directory": func(dir, _ string) error { return os.Chmod(dir, 0o702) },
		"a directory": func(_, file string) error {
			if err := os.Remove(file); err != nil {
				return err
			}
			return os.Mkdir(file, 0o700)
		},
		"a link": func(dir, file string) error {
			if err := os.Rename(file, filepath.Join(dir, "other")); err != nil {
				return err
			}
			return os.Symlink("other", file)
		},
		"a linked directory": func(dir, _ string) error {
			if err := os.Rename(dir, dir+".other"); err != nil {
				return err
			}
			return os.Symlink(dir+".other", dir)
		},
	} {
		t.Run(name, func(t *testing.T) {
			if os.Geteuid() != 0 && (name == "another user's" || name == "directory of another user") {
				return // nobody else can give a file away
			}
			run := runDir(t)
			write(t, run, "a")
			if !Known(run, "runsc", "a") {
				t.Fatal("control: the record is not known")
			}
			dir := filepath.Join(run, Dir)
			if err := spoil(dir, filepath.Join(dir, "runsc")); err != nil {
				t.Fatal(err)
			}
			if Known(run, "runsc", "a") {
				t.Error("the record counts")
			}
		})
	}
}

// TestOnDisk: a record that outlives a boot does not count.
func TestOnDisk(t *testing.T) {
	dir, err := os.MkdirTemp("/var/tmp", "proven-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	write(t, dir, "a")
	if Known(dir, "runsc", "a") {
		t.Error("the record counts")
	}
}

// TestFile: another content of the same size and time has another identity.
func TestFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "program")
	if _, err := File(file); err == nil {
		t.Error("a missing file is identified")
	}
	identity := func() string {
		t.Helper()
		id, err := File(file)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	if err := os.WriteFile(file, []byte("one"), 0o700); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	first := identity()
	if identity() != first {
		t.Error("the identity changes by itself")
	}
	replacement := file + ".new"
	if err := os.WriteFile(replacement, []byte("two"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(replacement, file); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(file, fi.ModTime(), fi.ModTime()); err != nil {
		t.Fatal(err)
	}
	if identity() == first {
		t.Error("another file has the same identity")
	}
}
