package asuser

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Ids of users and groups that need not exist.
const (
	alice, bob           = 41001, 41002
	aliceGroup, bobGroup = 42001, 42002
	projectGroup         = 42003
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests need root: scripts/lab up, then scripts/lab exec -- go test ./internal/asuser")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// openDir returns a temporary directory that all users can search.
func openDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func create(t *testing.T, path string, uid, gid int, mode fs.FileMode) {
	t.Helper()
	var err error
	if mode.IsDir() {
		err = os.Mkdir(path, 0o700)
	} else {
		err = os.WriteFile(path, []byte("content"), 0o600)
	}
	if err := errors.Join(err, os.Chown(path, uid, gid), os.Chmod(path, mode.Perm())); err != nil {
		t.Fatal(err)
	}
}

// TestRead reads files of several owners and modes as alice. The control reads each
// as root.
func TestRead(t *testing.T) {
	dir := openDir(t)
	closed := filepath.Join(dir, "closed")
	create(t, closed, bob, bobGroup, fs.ModeDir|0o700)
	user := User{UID: alice, GID: aliceGroup, Groups: []int{projectGroup}}
	for name, c := range map[string]struct {
		uid, gid int
		mode     fs.FileMode
		readable bool
	}{
		"own":                     {alice, aliceGroup, 0o600, true},
		"own without permission":  {alice, aliceGroup, 0o000, false},
		"readable by everyone":    {0, 0, 0o644, true},
		"root":                    {0, 0, 0o600, false},
		"bob":                     {bob, bobGroup, 0o600, false},
		"root group":              {bob, 0, 0o640, false},
		"primary group":           {bob, aliceGroup, 0o640, true},
		"supplementary group":     {bob, projectGroup, 0o640, true},
		"other group":             {bob, bobGroup, 0o640, false},
		"closed/in bob's private": {alice, aliceGroup, 0o644, false},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, name)
			create(t, path, c.uid, c.gid, c.mode)
			if data, err := os.ReadFile(path); err != nil || string(data) != "content" {
				t.Fatalf("control: %q, %v", data, err)
			}
			pool, err := NewPool(user, 2)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			for kind, run := range map[string]func(func() error) error{
				"Run": func(fn func() error) error { return Run(user, fn) }, "Pool": pool.Do,
			} {
				var data []byte
				err := run(func() (err error) {
					data, err = os.ReadFile(path)
					return err
				})
				if c.readable && (err != nil || string(data) != "content") {
					t.Errorf("%s: %q, %v", kind, data, err)
				}
				if !c.readable && (!errors.Is(err, unix.EACCES) || len(data) > 0) {
					t.Errorf("%s: read %q, %v, want %v", kind, data, err, unix.EACCES)
				}
			}
		})
	}
}

// TestRights checks the thread's ids and capabilities, and what they allow. The
// control does each as root.
func TestRights(t *testing.T) {
	dir := openDir(t)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	user := User{UID: alice, GID: aliceGroup, Groups: []int{projectGroup, bobGroup}}
	other := filepath.Join(dir, "root's")
	create(t, other, 0, 0, 0o644)
	attempts := map[string]func() error{
		"change the owner":        func() error { return os.Chown(other, alice, aliceGroup) },
		"change the mode":         func() error { return os.Chmod(other, 0o666) },
		"trusted attribute":       func() error { return unix.Setxattr(other, "trusted.x", []byte("y"), 0) },
		"root of another process": func() error { _, err := os.Readlink(fmt.Sprintf("/proc/%d/root", os.Getppid())); return err },
		"device node":             func() error { return unix.Mknod(filepath.Join(dir, "device"), unix.S_IFCHR|0o600, 0x103) },
		"supplementary groups":    func() error { return setgroups([]int{0}) },
	}
	err := Run(user, func() error {
		status := threadStatus(t, fmt.Sprintf("/proc/self/task/%d", unix.Gettid()))
		for key, want := range map[string]string{
			"Uid": fmt.Sprintf("0 0 0 %d", alice), "Gid": fmt.Sprintf("0 0 0 %d", aliceGroup), "Groups": fmt.Sprintf("%d %d", bobGroup, projectGroup),
			"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapInh": "0000000000000000",
		} {
			if status[key] != want {
				t.Errorf("%s is %q, want %q", key, status[key], want)
			}
		}
		for name, attempt := range attempts {
			if err := attempt(); !errors.Is(err, fs.ErrPermission) {
				t.Errorf("%s: %v, want a permission error", name, err)
			}
		}
		return os.WriteFile(filepath.Join(dir, "created"), nil, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "created"), &st); err != nil || st.Uid != alice || st.Gid != aliceGroup {
		t.Errorf("a new file belongs to %d:%d, %v", st.Uid, st.Gid, err)
	}
	// Groups are set on a thread that is destroyed.
	control := make(chan error)
	for name, attempt := range attempts {
		go func() {
			runtime.LockOSThread()
			control <- attempt()
		}()
		if err := <-control; err != nil {
			t.Errorf("control: %s: %v", name, err)
		}
	}
}

func threadStatus(t *testing.T, dir string) map[string]string {
	t.Helper()
	data, err := os.ReadFile(dir + "/status")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(line, ":")
		out[key] = strings.Join(strings.Fields(value), " ")
	}
	return out
}

// TestOtherThreads: the rest of the process keeps root's rights meanwhile, and no
// thread with other rights remains afterwards.
func TestOtherThreads(t *testing.T) {
	dir := openDir(t)
	private := filepath.Join(dir, "private")
	create(t, private, 0, 0, 0o600)
	pool, err := NewPool(User{UID: bob, GID: bobGroup}, 3)
	if err != nil {
		t.Fatal(err)
	}
	var g sync.WaitGroup
	for range 20 {
		g.Go(func() {
			for range 50 {
				err := Run(User{UID: alice, GID: aliceGroup}, func() error {
					_, err := os.ReadFile(private)
					return err
				})
				perr := pool.Do(func() error {
					_, err := os.ReadFile(private)
					return err
				})
				if !errors.Is(err, unix.EACCES) || !errors.Is(perr, unix.EACCES) {
					t.Errorf("as alice: %v, as bob: %v", err, perr)
				}
				if _, err := os.ReadFile(private); err != nil {
					t.Errorf("as root: %v", err)
				}
			}
		})
	}
	g.Wait()
	pool.Close()
	if err := pool.Do(func() error { t.Error("called after Close"); return nil }); err == nil {
		t.Error("Do succeeds after Close")
	}
	// The runtime destroys threads asynchronously.
	var left []string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); runtime.Gosched() {
		if left = threadsNotRoot(t); len(left) == 0 {
			break
		}
	}
	if len(left) > 0 {
		t.Errorf("threads left: %q", left)
	}
}

// threadsNotRoot lists threads other than the main one with ids other than root's. The
// runtime cannot destroy the main thread; it blocks it forever instead.
func threadsNotRoot(t *testing.T) (out []string) {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range tasks {
		if filepath.Base(dir) == fmt.Sprint(os.Getpid()) {
			continue
		}
		data, err := os.ReadFile(dir + "/status")
		if err != nil {
			continue // ended
		}
		for line := range strings.Lines(string(data)) {
			if fields := strings.Fields(line); fields[0] == "Uid:" && !slices.Equal(fields[1:], []string{"0", "0", "0", "0"}) {
				out = append(out, dir+" "+line)
			}
		}
	}
	return out
}

// TestResult: errors and Goexit of the function end the call.
func TestResult(t *testing.T) {
	user, failure := User{UID: alice, GID: aliceGroup}, errors.New("failure")
	if err := Run(user, func() error { return failure }); !errors.Is(err, failure) {
		t.Error(err)
	}
	if err := Run(user, func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("no error after Goexit")
	}
	// Root needs no thread: the function runs on the caller's.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	thread := unix.Gettid()
	pool, err := NewPool(User{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	here := func() error {
		if unix.Gettid() != thread {
			return errors.New("another thread")
		}
		return nil
	}
	if err := errors.Join(Run(User{}, here), pool.Do(here)); err != nil {
		t.Error(err)
	}
}
