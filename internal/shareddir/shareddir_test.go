package shareddir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// Processes that create their own directory below shared ones, while others remove
// the shared ones as soon as they are empty, never fail.
func TestConcurrentPrune(t *testing.T) {
	top := filepath.Join(t.TempDir(), "top")
	shared := filepath.Join(top, "shared")
	if err := churn(shared, func(own string) error { return Mkdir(own, 0o700) }); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(top); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the shared directory is left: %v", err)
	}
}

// Control: os.MkdirAll fails in the same situation.
func TestConcurrentPruneControl(t *testing.T) {
	shared := filepath.Join(t.TempDir(), "top", "shared")
	for range 50 {
		if churn(shared, func(own string) error { return os.MkdirAll(own, 0o700) }) != nil {
			return
		}
	}
	t.Error("os.MkdirAll never failed")
}

func churn(shared string, mkdir func(own string) error) error {
	errs := make([]error, 8)
	var wg sync.WaitGroup
	for i := range errs {
		own := filepath.Join(shared, fmt.Sprint(i))
		wg.Go(func() {
			for range 200 {
				if err := mkdir(own); err != nil {
					errs[i] = err
					return
				}
				if err := os.Remove(own); err != nil {
					errs[i] = err
					return
				}
				Prune(shared, filepath.Dir(shared))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Of concurrent callers exactly one gets a directory.
func TestMkdirOnce(t *testing.T) {
	for range 100 {
		own := filepath.Join(t.TempDir(), "shared", "own")
		errs := make([]error, 4)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() { errs[i] = Mkdir(own, 0o700) })
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			switch {
			case err == nil:
				won++
			case !errors.Is(err, os.ErrExist):
				t.Error(err)
			}
		}
		if won != 1 {
			t.Fatalf("%d callers succeeded: %v", won, errs)
		}
	}
}

// Errors that are not races are returned.
func TestErrors(t *testing.T) {
	dir := t.TempDir()
	file, dangling := filepath.Join(dir, "file"), filepath.Join(dir, "dangling")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Symlink("nowhere/at/all", dangling)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"", file, filepath.Join(file, "below"), dangling, filepath.Join(dangling, "below"), "/proc/1/new"} {
		if err := MkdirAll(path, 0o700); err == nil {
			t.Errorf("MkdirAll(%q) succeeded", path)
		}
	}
	if err := Mkdir(file, 0o700); !errors.Is(err, os.ErrExist) {
		t.Errorf("Mkdir of an existing file: %v", err)
	}
	if err := MkdirAll(dir, 0o700); err != nil {
		t.Errorf("MkdirAll of an existing directory: %v", err)
	}
}
