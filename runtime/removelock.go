package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/names"
)

// Concurrent removals of a task make containerd leak its shim: if one Delete finds the
// task gone while the other is still in the shim, containerd closes its connection and
// removes the shim's bundle, but the shim refuses to shut down. So processes that
// remove the same container take turns.

// ReserveLocks creates the lock files of a new bottle's containers in its directory, so that
// a removal needs no space.
func ReserveLocks(dir, name string) error {
	for _, id := range []string{name, names.Proxy(name), names.Front(name)} {
		if err := os.WriteFile(filepath.Join(dir, removalLock(id)), nil, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func removalLock(id string) string { return id + ".remove.lock" }

// lockInterval is the interval of attempts to take the lock.
const lockInterval = 10 * time.Millisecond

// lockRemoval takes the lock on the removal of a container, until unlock is called.
// done reports that another process has removed the bottle meanwhile: its directory,
// which holds the lock file, is removed last, and the name may be in use again.
func (c *Client) lockRemoval(ctx context.Context, id string) (unlock func(), done bool, err error) {
	file := filepath.Join(c.Dir(names.Bottle(id)), removalLock(id))
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, os.ErrNotExist) {
		return func() {}, false, nil // only leftovers of a crash have no directory
	}
	if err != nil {
		return nil, false, fmt.Errorf("lock removal of %s: %w", id, err)
	}
	unlock = func() { _ = f.Close() }
	if err := flock(ctx, f); err != nil {
		unlock()
		return nil, false, fmt.Errorf("lock removal of %s: %w", id, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		unlock()
		return nil, false, fmt.Errorf("lock removal of %s: %w", id, err)
	}
	return unlock, st.Nlink == 0, nil
}

func flock(ctx context.Context, f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return err
		}
		select {
		case <-time.After(lockInterval):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
