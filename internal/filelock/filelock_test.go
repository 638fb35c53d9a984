package filelock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestExclusive(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "lock")
	for _, tt := range []struct {
		name string
		lock func(context.Context, func()) (*Lock, error)
	}{
		{"directory", func(ctx context.Context, waiting func()) (*Lock, error) { return Open(ctx, dir, waiting) }},
		{"created file", func(ctx context.Context, waiting func()) (*Lock, error) { return Create(ctx, file, waiting) }},
		{"existing file", func(ctx context.Context, waiting func()) (*Lock, error) { return Open(ctx, file, waiting) }},
		{"file in new directory", func(ctx context.Context, waiting func()) (*Lock, error) {
			return CreateAll(ctx, filepath.Join(dir, "a", "b", "lock"), waiting)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			first, err := tt.lock(t.Context(), func() { t.Error("waited for a free lock") })
			if err != nil {
				t.Fatal(err)
			}
			waits := make(chan struct{})
			second := make(chan *Lock, 1)
			go func() {
				l, err := tt.lock(context.Background(), func() { close(waits) })
				if err != nil {
					t.Error(err)
				}
				second <- l
			}()
			<-waits
			select {
			case <-second:
				t.Fatal("two holders")
			case <-time.After(20 * time.Millisecond):
			}
			if err := first.Release(); err != nil {
				t.Fatal(err)
			}
			if err := (<-second).Release(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestCancel checks that a waiter whose context ends returns immediately, and that the
// lock that flock(2) acquires later is released.
func TestCancel(t *testing.T) {
	dir := t.TempDir()
	held, err := Open(t.Context(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := Open(ctx, dir, cancel); !errors.Is(err, context.Canceled) {
		t.Fatalf("Open with a context that ended: %v", err)
	}
	if _, err := Create(ctx, filepath.Join(dir, "new"), nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("Create with a context that ended: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "new")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Create made a file after its context had ended: %v", err)
	}
	if err := held.Release(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(t.Context(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Release(); err != nil {
		t.Fatal(err)
	}
}

// A waiter never returns with a lock on a file that was removed.
func TestRemovedWhileWaiting(t *testing.T) {
	for _, tt := range []struct {
		name string
		lock func(ctx context.Context, path string, waiting func()) (*Lock, error)
		want error
	}{
		{"Open", Open, os.ErrNotExist},
		{"Create", Create, nil},
		{"CreateAll", CreateAll, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "lock")
			held, err := Create(t.Context(), path, nil)
			if err != nil {
				t.Fatal(err)
			}
			waits := make(chan struct{})
			type result struct {
				l   *Lock
				err error
			}
			got := make(chan result, 1)
			go func() {
				l, err := tt.lock(context.Background(), path, func() { close(waits) })
				got <- result{l, err}
			}()
			<-waits
			if err := errors.Join(os.Remove(path), held.Release()); err != nil {
				t.Fatal(err)
			}
			r := <-got
			if !errors.Is(r.err, tt.want) {
				t.Fatalf("error %v, want %v", r.err, tt.want)
			}
			if r.l != nil {
				if current, err := r.l.current(); !current || err != nil {
					t.Errorf("got a lock on a removed file: %v", err)
				}
				if err := r.l.Release(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// Holders remove the lock file and all of its directories. There is never a second
// holder, and no error.
func TestHoldersRemoveDirectories(t *testing.T) {
	top := filepath.Join(t.TempDir(), "top")
	path := filepath.Join(top, "shared", "lock")
	var holders atomic.Int32
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() {
			for range 200 {
				l, err := CreateAll(context.Background(), path, nil)
				if err != nil {
					errs[i] = err
					return
				}
				if n := holders.Add(1); n != 1 {
					errs[i] = fmt.Errorf("%d holders", n)
				}
				holders.Add(-1)
				_ = os.Remove(path)
				_ = os.Remove(filepath.Dir(path)) // fails once another has created its file
				_ = os.Remove(top)
				if err := l.Release(); err != nil {
					errs[i] = err
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestMissing(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "no", "lock")
	if _, err := Open(t.Context(), missing, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open: %v", err)
	}
	if _, err := Create(t.Context(), missing, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Create: %v", err)
	}
	if _, err := CreateAll(t.Context(), "/dev/null/lock", nil); err == nil {
		t.Error("CreateAll below a file succeeded")
	}
}
