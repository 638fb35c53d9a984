package program_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/bot-bottle/bottle/internal/program"
)

func script(text string) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader([]byte("#!/bin/sh\necho " + text + "\n"))), nil
	}
}

func write(t *testing.T, p program.Program, dir string) string {
	t.Helper()
	file, err := p.Write(dir, "guest")
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(dir, "guest"); file != want {
		t.Errorf("path %s, want %s", file, want)
	}
	return file
}

func prints(t *testing.T, file, want string) {
	t.Helper()
	out, err := exec.Command(file).Output()
	if err != nil || string(out) != want+"\n" {
		t.Errorf("%s prints %q, %v; want %s", file, out, err, want)
	}
}

func same(t *testing.T, a, b string) bool {
	t.Helper()
	x, err := os.Stat(a)
	y, err2 := os.Stat(b)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	return os.SameFile(x, y)
}

// TestStore: bottles share the file of a program, and a program of another version changes
// neither it nor what another bottle has.
func TestStore(t *testing.T) {
	root := t.TempDir()
	dirs := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	one := program.Program{Open: script("one"), Store: program.Store{Dir: filepath.Join(root, "s"), ID: "1"}}
	two := program.Program{Open: script("two"), Store: program.Store{Dir: filepath.Join(root, "s"), ID: "2"}}
	a, b := write(t, one, dirs[0]), write(t, one, dirs[1])
	if !same(t, a, b) {
		t.Error("two bottles of one version have a file each")
	}
	c := write(t, two, dirs[2])
	prints(t, c, "two")
	// The other version again, in the directory of a bottle that had the first.
	if write(t, two, dirs[1]); !same(t, b, c) {
		t.Error("two bottles of the second version have a file each")
	}
	prints(t, a, "one")
	prints(t, b, "two")
	// Without a store, in a directory that has a link.
	if write(t, program.Program{Open: script("three")}, dirs[1]); same(t, b, c) {
		t.Error("a copy was written to a shared file")
	}
	prints(t, b, "three")
	prints(t, c, "two")
	if entries, err := os.ReadDir(one.Store.Dir); err != nil || len(entries) != 1 || entries[0].Name() != "2" {
		t.Errorf("the store has %v, %v; want the last version only", entries, err)
	}
}

// TestForget: without the store a bottle keeps its program, and the next one has another file.
func TestForget(t *testing.T) {
	state := t.TempDir()
	p := program.Program{Open: script("one"), Store: program.StoreIn(state, "1")}
	a := write(t, p, t.TempDir())
	for range 2 {
		if err := program.Forget(state); err != nil {
			t.Error(err)
		}
	}
	if entries, err := os.ReadDir(state); err != nil || len(entries) != 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
	prints(t, a, "one")
	if b := write(t, p, t.TempDir()); same(t, a, b) {
		t.Error("the store was not removed")
	}
}

// TestStoreWithoutLinks: on another file system, a bottle gets a copy.
func TestStoreWithoutLinks(t *testing.T) {
	shm, err := os.MkdirTemp("/dev/shm", "program-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(shm) }() // a failure shows in the next run only
	p := program.Program{Open: script("one"), Store: program.Store{Dir: shm, ID: "1"}}
	prints(t, write(t, p, t.TempDir()), "one")
}

// TestStoreAtOnce: many launches begin with an empty store.
func TestStoreAtOnce(t *testing.T) {
	store := program.Store{Dir: filepath.Join(t.TempDir(), "s"), ID: "1"}
	var wg sync.WaitGroup
	for range 20 {
		dir := t.TempDir()
		wg.Go(func() {
			p := program.Program{Open: script("one"), Store: store}
			file, err := p.Write(dir, "guest")
			if err != nil {
				t.Error(err)
				return
			}
			if data, err := os.ReadFile(file); err != nil || string(data) != "#!/bin/sh\necho one\n" {
				t.Errorf("%q, %v", data, err)
			}
		})
	}
	wg.Wait()
	if entries, err := os.ReadDir(filepath.Join(store.Dir, "1")); err != nil || len(entries) != 1 {
		t.Errorf("the store has %v, %v", entries, err)
	}
}

// TestIdentity: another content has another identity, with the same size and times.
func TestIdentity(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(file, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	before, err := program.Identity(file)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := program.Identity(file); err != nil || again != before {
		t.Errorf("identity %s, then %s, %v", before, again, err)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("two"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(file, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if after, err := program.Identity(file); err != nil || after == before {
		t.Errorf("identity %s also after a change, %v", after, err)
	}
	if _, err := program.Identity(file + ".absent"); err == nil {
		t.Error("an absent file has an identity")
	}
}
