package runtime

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestRemovalLock(t *testing.T) {
	const name = "claude-bottle-lock"
	c := &Client{cfg: Config{RunDir: t.TempDir(), Namespace: "ns"}}
	if unlock, done, err := c.lockRemoval(t.Context(), name); err != nil || done {
		t.Errorf("without a directory: %v, %v", done, err)
	} else {
		unlock()
	}
	if err := os.MkdirAll(c.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	unlock, done, err := c.lockRemoval(t.Context(), name)
	if err != nil || done {
		t.Fatalf("first: %v, %v", done, err)
	}
	if unlock, done, err := c.lockRemoval(t.Context(), name+ProxySuffix); err != nil || done {
		t.Errorf("the proxy, meanwhile: %v, %v", done, err)
	} else {
		unlock()
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := c.lockRemoval(short, name); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second, with a deadline: %v", err)
	}
	type result struct {
		done bool
		err  error
	}
	second := make(chan result)
	go func() {
		unlock, done, err := c.lockRemoval(t.Context(), name)
		if err == nil {
			unlock()
		}
		second <- result{done, err}
	}()
	for openCount(t, filepath.Join(c.Dir(name), name+".remove.lock")) < 2 {
		time.Sleep(time.Millisecond) // until the second one waits
	}
	if err := os.RemoveAll(c.Dir(name)); err != nil {
		t.Fatal(err)
	}
	unlock()
	if r := <-second; r.err != nil || !r.done {
		t.Errorf("second, after the removal: %+v", r)
	}
}

// openCount returns how often this process has a file open.
func openCount(t *testing.T, file string) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if target, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && target == file {
			n++
		}
	}
	return n
}
