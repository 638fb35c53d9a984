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

	"github.com/bot-bottle/bottle/internal/filelock"
)

// state is the state directory of one containerd socket, namespace and owner, locked by
// this build. With a shared cache a user could have another user's build take a step's
// result from it.
//
//	lock     locked while a build runs; the kernel releases it if the process dies
//	id       random; identifies the directory's leases in containerd
//	unclean  exists while a build runs, and after a build was killed
//	limit    size that the cache was last pruned to, in bytes
//	cache/   BuildKit's databases
//	tmp/     mounts of running steps; they remain after a crash
type state struct {
	dir, id  string
	lock     *filelock.Lock
	restore  []func() error // the process's environment, last changed first
	prepared bool
	crashed  time.Time // when an earlier build that left something started; zero: none
	unclean  bool      // this build leaves something
	discard  bool      // remove the directory on close
}

func (c Config) stateDir() string {
	socket := c.Address
	if real, err := filepath.EvalSymlinks(socket); err == nil {
		socket = real
	}
	key := socket + "\x00" + c.Namespace + "\x00" + c.Snapshotter
	if c.Owner != 0 {
		key += "\x00" + strconv.Itoa(c.Owner)
	}
	sum := sha256.Sum256([]byte(key))
	return filepath.Join(c.StateDir, hex.EncodeToString(sum[:6]))
}

// openState locks the state directory, waiting for other builds.
func (c Config) openState(ctx context.Context) (_ *state, err error) {
	s := &state{dir: c.stateDir()}
	// Pruning removes the directory with the lock's file, which filelock allows for.
	if s.lock, err = filelock.CreateAll(ctx, filepath.Join(s.dir, "lock"), c.Wait); err != nil {
		return nil, fmt.Errorf("lock build state %s: %w", s.dir, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.lock.Release())
		}
	}()
	if s.id, err = stateID(filepath.Join(s.dir, "id")); err != nil {
		return nil, err
	}
	return s, nil
}

// prepare removes the leftovers of a killed build, whose steps have been removed by
// now, and makes BuildKit mount in the directory.
func (s *state) prepare() error {
	if err := s.unmountLeftovers(); err != nil {
		return err
	}
	for _, dir := range []string{s.tmp(), s.cache()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("create build state: %w", err)
		}
	}
	mark := filepath.Join(s.dir, "unclean")
	if fi, err := os.Stat(mark); err == nil {
		s.crashed = fi.ModTime()
	} else if err := os.WriteFile(mark, nil, 0o600); err != nil {
		return fmt.Errorf("create build state: %w", err)
	}
	// BuildKit mounts steps' file systems and secrets in the process's temporary
	// directory. In the state directory they can be found after a crash.
	s.prepared = true
	return s.setenv("TMPDIR", s.tmp())
}

// setenv sets a variable of this process until close.
func (s *state) setenv(name, value string) error {
	before, had := os.LookupEnv(name)
	s.restore = append([]func() error{func() error {
		if had {
			return os.Setenv(name, before)
		}
		return os.Unsetenv(name)
	}}, s.restore...)
	return os.Setenv(name, value)
}

// remove deletes the state directory. The lock is still held.
func (s *state) remove() error {
	if err := os.RemoveAll(s.dir); err != nil {
		return fmt.Errorf("remove build state: %w", err)
	}
	// Not empty if other namespaces use it or a waiting build has created ours again.
	_ = os.Remove(filepath.Dir(s.dir))
	return nil
}

func (s *state) tmp() string   { return filepath.Join(s.dir, "tmp") }
func (s *state) cache() string { return filepath.Join(s.dir, "cache") }

// stateID reads the directory's id, or creates one.
func stateID(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err == nil && len(data) > 0 {
		return string(data), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read build state id: %w", err)
	}
	id := strings.ToLower(rand.Text())
	if err := os.WriteFile(file, []byte(id), 0o600); err != nil {
		return "", fmt.Errorf("write build state id: %w", err)
	}
	return id, nil
}

// emptyCache deletes BuildKit's databases.
func (s *state) emptyCache() error {
	err := os.RemoveAll(s.cache())
	if err == nil {
		err = os.Mkdir(s.cache(), 0o700)
	}
	if err != nil {
		return fmt.Errorf("empty build cache: %w", err)
	}
	return nil
}

// limit returns the value stored by setLimit, or 0.
func (s *state) limit() int64 {
	data, err := os.ReadFile(filepath.Join(s.dir, "limit"))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(string(data), 10, 64) // invalid content means no limit
	return n
}

func (s *state) setLimit(n int64) error {
	if s.limit() == n {
		return nil
	}
	if err := os.WriteFile(filepath.Join(s.dir, "limit"), strconv.AppendInt(nil, n, 10), 0o600); err != nil {
		return fmt.Errorf("write build cache limit: %w", err)
	}
	return nil
}

// unmountLeftovers unmounts what a killed build left mounted, deepest first.
func (s *state) unmountLeftovers() error {
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
	// Safe because nothing is mounted below it any more.
	if err := os.RemoveAll(s.tmp()); err != nil {
		return fmt.Errorf("remove temporary build files: %w", err)
	}
	return nil
}

func (s *state) close() error {
	var err error
	if s.prepared {
		err = s.unmountLeftovers()
		if !s.unclean {
			err = errors.Join(err, os.Remove(filepath.Join(s.dir, "unclean")))
		}
		for _, fn := range s.restore {
			err = errors.Join(err, fn())
		}
	}
	if s.discard {
		err = errors.Join(err, s.remove())
	}
	return errors.Join(err, s.lock.Release())
}
