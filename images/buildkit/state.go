package buildkit

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// state is the folder of one containerd socket and namespace, held by this
// build alone.
//
//	lock     held while a build runs; the kernel lets go of it whatever happens
//	id       random, made with the folder: what its leases in containerd bear
//	unclean  there while a build runs, and after one that was killed
//	bound    what the cache was last brought under, in bytes
//	cache/   BuildKit's databases
//	tmp/     mounts of running steps; after a crash they are still there
type state struct {
	dir, id  string
	lock     *os.File
	tmpdir   string // TMPDIR as it was
	hadTmp   bool
	prepared bool
	left     time.Time // when a build began that has left something; zero: none has
	unclean  bool      // this one has
	discard  bool      // the folder goes when it is closed
}

// lockPoll is how often a waiting build looks whether its turn has come.
const lockPoll = 100 * time.Millisecond

func (c Config) stateDir() string {
	socket := c.Address
	if real, err := filepath.EvalSymlinks(socket); err == nil {
		socket = real
	}
	sum := sha256.Sum256([]byte(socket + "\x00" + c.Namespace + "\x00" + c.Snapshotter))
	return filepath.Join(c.StateDir, hex.EncodeToString(sum[:6]))
}

// openState takes the state folder, waiting for its turn.
func (c Config) openState(ctx context.Context) (_ *state, err error) {
	s := &state{dir: c.stateDir()}
	if err := s.hold(ctx, c.Wait); err != nil {
		return nil, fmt.Errorf("take the lock of the build state %s: %w", s.dir, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.lock.Close())
		}
	}()
	if s.id, err = stateID(filepath.Join(s.dir, "id")); err != nil {
		return nil, err
	}
	return s, nil
}

// prepare empties the folder of what a killed build has left, whose steps are
// gone by now, and has BuildKit mount in it.
func (s *state) prepare() error {
	if err := s.unmountLeft(); err != nil {
		return err
	}
	for _, dir := range []string{s.tmp(), s.cache()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make the build state: %w", err)
		}
	}
	mark := filepath.Join(s.dir, "unclean")
	if fi, err := os.Stat(mark); err == nil {
		s.left = fi.ModTime()
	} else if err := os.WriteFile(mark, nil, 0o600); err != nil {
		return fmt.Errorf("make the build state: %w", err)
	}
	// BuildKit mounts steps' file systems and secrets in the process's folder
	// for temporary files; in one of our own they are found after a crash.
	s.tmpdir, s.hadTmp = os.LookupEnv("TMPDIR")
	s.prepared = true
	return os.Setenv("TMPDIR", s.tmp())
}

// hold takes the lock, and makes the folder when there is none. A pruning build
// removes both, so that what a waiter got may be a file that has no name any more.
func (s *state) hold(ctx context.Context, wait func()) error {
	for told := false; ; {
		if err := os.MkdirAll(s.dir, 0o700); err != nil {
			return err
		}
		lock, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
		if errors.Is(err, os.ErrNotExist) {
			continue // removed between the two calls
		}
		if err != nil {
			return err
		}
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			if !told {
				wait()
				told = true
			}
			err = flockContext(ctx, lock)
		}
		if err != nil {
			return errors.Join(err, lock.Close())
		}
		if named(lock) {
			s.lock = lock
			return nil
		}
		if err := lock.Close(); err != nil {
			return err
		}
	}
}

// flockContext waits for the lock, or for ctx.
func flockContext(ctx context.Context, f *os.File) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lockPoll):
		}
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
	}
}

// named tells whether the open file is still the one that has its name.
func named(f *os.File) bool {
	var held, there unix.Stat_t
	if unix.Fstat(int(f.Fd()), &held) != nil || unix.Stat(f.Name(), &there) != nil {
		return false
	}
	return held.Dev == there.Dev && held.Ino == there.Ino
}

// remove takes the folder away, and with it the last trace of all builds. The
// lock is still held.
func (s *state) remove() error {
	if err := os.RemoveAll(s.dir); err != nil {
		return fmt.Errorf("remove the build state: %w", err)
	}
	// Shared with other namespaces' folders; and a waiter may have made ours anew.
	_ = os.Remove(filepath.Dir(s.dir))
	return nil
}

func (s *state) tmp() string   { return filepath.Join(s.dir, "tmp") }
func (s *state) cache() string { return filepath.Join(s.dir, "cache") }

// stateID reads the folder's id, or makes one.
func stateID(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err == nil && len(data) > 0 {
		return string(data), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read the build state's id: %w", err)
	}
	id := strings.ToLower(rand.Text())
	if err := os.WriteFile(file, []byte(id), 0o600); err != nil {
		return "", fmt.Errorf("write the build state's id: %w", err)
	}
	return id, nil
}

// emptyCache has BuildKit begin anew.
func (s *state) emptyCache() error {
	err := os.RemoveAll(s.cache())
	if err == nil {
		err = os.Mkdir(s.cache(), 0o700)
	}
	if err != nil {
		return fmt.Errorf("empty the build cache: %w", err)
	}
	return nil
}

// bound is what setBound has kept; of a folder that has none, nothing.
func (s *state) bound() int64 {
	data, err := os.ReadFile(filepath.Join(s.dir, "bound"))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(string(data), 10, 64) // what is no number is no bound
	return n
}

func (s *state) setBound(n int64) error {
	if s.bound() == n {
		return nil
	}
	if err := os.WriteFile(filepath.Join(s.dir, "bound"), strconv.AppendInt(nil, n, 10), 0o600); err != nil {
		return fmt.Errorf("write the build cache's bound: %w", err)
	}
	return nil
}

// unmountLeft takes away what a killed build has left mounted, deepest first.
func (s *state) unmountLeft() error {
	real, err := filepath.EvalSymlinks(s.dir)
	if err != nil {
		return err
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(m.Mountpoint, real+"/"), false
	})
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	sort.Slice(mounts, func(i, j int) bool { return len(mounts[i].Mountpoint) > len(mounts[j].Mountpoint) })
	for _, m := range mounts {
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s, which a killed build left: %w", m.Mountpoint, err)
		}
	}
	// Nothing is mounted there any more that could be emptied by this.
	if err := os.RemoveAll(s.tmp()); err != nil {
		return fmt.Errorf("remove what a build left: %w", err)
	}
	return nil
}

func (s *state) close() error {
	var err error
	if s.prepared {
		err = s.unmountLeft()
		if !s.unclean {
			err = errors.Join(err, os.Remove(filepath.Join(s.dir, "unclean")))
		}
		if s.hadTmp {
			err = errors.Join(err, os.Setenv("TMPDIR", s.tmpdir))
		} else {
			err = errors.Join(err, os.Unsetenv("TMPDIR"))
		}
	}
	if s.discard {
		err = errors.Join(err, s.remove())
	}
	return errors.Join(err, s.lock.Close())
}
