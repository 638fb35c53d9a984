package netns

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// TestConcurrentRemove removes the same network several times concurrently,
// as `bottle rm` does while `bottle run` ends. All succeed, and nothing is left.
func TestConcurrentRemove(t *testing.T) {
	before := hostState(t)
	dir := makeBottleDir(t, "one")
	managers := make([]*Manager, 4)
	for i := range managers {
		managers[i] = newManager(t)
	}
	for range 30 {
		if _, err := attach(ctx(t), managers[0], dir, nil); err != nil {
			t.Fatal(err)
		}
		if err := removeConcurrently(managers, dir); err != nil {
			t.Fatal(err)
		}
	}
	removeBottleDir(t, dir)
	checkUnchanged(t, before)
}

func removeConcurrently(managers []*Manager, dir string) error {
	errs := make([]error, len(managers))
	var wg sync.WaitGroup
	for i, m := range managers {
		wg.Go(func() { errs[i] = m.Remove(context.Background(), dir) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// TestRemoveDuringCreate removes a network while it is created. The removal succeeds;
// the creation may fail. If it does not, it was later, and the launch that it belongs
// to removes it again. If it fails, it left nothing on the host.
func TestRemoveDuringCreate(t *testing.T) {
	before := hostState(t)
	dir := makeBottleDir(t, "one")
	creator, remover := newManager(t), newManager(t)
	failed := 0
	for range 30 {
		created := make(chan error, 1)
		started := make(chan struct{})
		go func() {
			p, err := creator.Create(context.Background(), dir)
			close(started)
			if err == nil {
				err = p.AttachEgress(context.Background(), nil)
			}
			created <- err
		}()
		<-started
		rerr := remover.Remove(context.Background(), dir)
		cerr := <-created
		if rerr != nil {
			t.Fatal(rerr)
		}
		if cerr != nil {
			failed++
			removeBottleDir(t, dir) // fails unless it is empty
			checkUnchanged(t, before)
			makeBottleDir(t, "one")
		}
		if err := remover.Remove(context.Background(), dir); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d of 30 creations failed", failed)
	removeBottleDir(t, dir)
	checkUnchanged(t, before)
}

// TestRunDirRemoved has bottles share a run directory that each of them removes with
// its own directory when it is empty, as the root package does. No bottle fails
// because of another's removal.
func TestRunDirRemoved(t *testing.T) {
	before := hostState(t)
	top := filepath.Join(runDir, "nested")
	errs := make([]error, 4)
	var wg sync.WaitGroup
	for i := range errs {
		m, err := New(Config{RunDir: top, PluginDirs: pluginDirs(t)})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for range 1000 {
				// The first change on the host, and the last one.
				l, err := m.acquire(context.Background())
				if err != nil {
					errs[i] = err
					return
				}
				err = m.removeNetDir()
				l.release()
				_ = os.Remove(top) // fails while another bottle uses it
				if errs[i] = err; err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	checkUnchanged(t, before)
}

// TestUnnamedPort: an attachment that was interrupted has left a port without alias, whose
// namespace still exists. The last removal does not mistake it for a port of a bottle.
func TestUnnamedPort(t *testing.T) {
	before := hostState(t)
	dir := makeBottleDir(t, "one")
	m := newManager(t)
	if _, err := attach(ctx(t), m, dir, nil); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"link", "add", "veth0a1b2c3d", "type", "veth", "peer", "name", "unnamed"}, {"link", "set", "veth0a1b2c3d", "master", "bottle0"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	if err := m.Remove(ctx(t), dir); err != nil {
		t.Fatal(err)
	}
	removeBottleDir(t, dir)
	checkUnchanged(t, before)
}
