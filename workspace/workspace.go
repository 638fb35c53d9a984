// Package workspace stores the files that agents work on. Each workspace is a directory
// on the host's disk with a sparse file, which contains a file system of a fixed maximum
// size, and a record of where its content came from. It outlives the bottle, its
// processes and a reboot.
//
// The files in the file system are the agent's and hostile. This package mounts it with
// nosuid and nodev, for root only, and never follows a link in it; nothing else on the
// host may open a path below a mount except the runtimes, which bind it.
package workspace

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/atomicfile"
	"github.com/bot-bottle/bottle/internal/filelock"
	"github.com/bot-bottle/bottle/internal/shareddir"
	"github.com/bot-bottle/bottle/internal/treecopy"
)

// Files of a workspace's directory.
const (
	diskFile   = "disk.img"
	recordFile = "workspace.json"
	recordLock = "workspace.lock" // of changes to the record
)

// Files is the directory of the agent's files in the file system. Its parent also
// contains lost+found, which only root may enter.
const Files = "files"

var (
	// ErrNotFound is wrapped if no workspace has the name.
	ErrNotFound = errors.New("no such workspace")
	// ErrExists is wrapped if a workspace has the name.
	ErrExists = errors.New("workspace exists")
)

// Record describes a workspace. It is written when the workspace has been filled: one
// without a record is incomplete.
type Record struct {
	Name     string `json:"name"`     // the bottle's
	Agent    string `json:"agent"`    // in the manifest
	Manifest string `json:"manifest"` // absolute path
	Owner    int    `json:"owner"`    // ID of the user who ran bottle
	Source   string `json:"source"`   // absolute path of the directory that was copied
	Target   string `json:"target"`   // absolute path in the bottle
	Image    string `json:"image"`
	Digest   string `json:"digest"` // of the image
	Runtime  string `json:"runtime"`
	UID      uint32 `json:"uid"` // of the agent's user
	GID      uint32 `json:"gid"`

	Size    int64     `json:"size_bytes"` // the file system's maximum size
	Created time.Time `json:"created"`
	// Ended is when it was last unmounted after use; zero while a bottle uses it, and
	// after a crash.
	Ended time.Time `json:"ended,omitzero"`
	// Start, End and Fetched are the fingerprints of the files when they were copied,
	// when the workspace was last unmounted, and when the work was last fetched. Empty:
	// not known.
	Start   string `json:"start,omitempty"`
	End     string `json:"end,omitempty"`
	Fetched string `json:"fetched,omitempty"`
	// Summary counts the work when the workspace was last used; nil: not known.
	Summary *Summary `json:"summary,omitempty"`
}

// Summary counts the agent's work in a workspace.
type Summary struct {
	Commits int `json:"commits"`
	Files   int `json:"files"` // changed ones
}

// Changed reports whether the agent may have changed a file since the copy was made.
func (r *Record) Changed() bool { return r.End == "" || r.End != r.Start }

// Unfetched reports whether the workspace may contain work that was not fetched.
func (r *Record) Unfetched() bool { return r.Changed() && (r.End == "" || r.End != r.Fetched) }

// Store manages the workspaces of one containerd namespace.
type Store struct{ dir string }

// New returns the store in a directory, which need not exist.
func New(dir string) *Store { return &Store{dir} }

// Dir returns the directory of a workspace on the host. It contains nothing of the
// agent's outside the file system.
func (s *Store) Dir(name string) string { return filepath.Join(s.dir, name) }

// Create creates an empty workspace with a file system of at most size bytes, without a
// record. The error wraps ErrExists. After an error nothing is left.
func (s *Store) Create(ctx context.Context, name string, size int64) (err error) {
	dir := s.Dir(name)
	err = shareddir.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create workspace %s: %w", name, ErrExists)
	}
	if err != nil {
		return fmt.Errorf("create workspace %s: %w", name, err)
	}
	if err := format(ctx, filepath.Join(dir, diskFile), size); err != nil {
		return errors.Join(fmt.Errorf("create workspace %s: %w", name, err), s.Remove(name))
	}
	return nil
}

// Copy copies the mounted workspace of a bottle that changes nothing meanwhile, without its
// record: until it is saved, the copy is incomplete. The error wraps ErrExists. After an error
// nothing is left.
func (s *Store) Copy(name, at, to string) (err error) {
	err = shareddir.Mkdir(s.Dir(to), 0o700)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("copy workspace to %s: %w", to, ErrExists)
	}
	if err != nil {
		return fmt.Errorf("copy workspace to %s: %w", to, err)
	}
	// Everything is in the sparse file then, or in the host's cache of it.
	dir, err := os.Open(at)
	if err == nil {
		err = errors.Join(unix.Syncfs(int(dir.Fd())), dir.Close())
	}
	if err == nil {
		err = treecopy.Dir(s.Dir(name), s.Dir(to), func(file string) bool { return file == recordFile || file == recordLock })
	}
	if err != nil {
		return errors.Join(fmt.Errorf("copy workspace %s to %s: %w", name, to, err), s.Remove(to))
	}
	return nil
}

// Save writes the record of a workspace.
func (s *Store) Save(r *Record) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(s.Dir(r.Name), recordFile), data, 0o600); err != nil {
		return fmt.Errorf("save record of workspace %s: %w", r.Name, err)
	}
	return nil
}

// Update changes the record of a workspace. The error wraps ErrNotFound.
func (s *Store) Update(ctx context.Context, name string, change func(*Record)) (err error) {
	if _, err := s.Load(name); err != nil {
		return err
	}
	lock, err := filelock.Create(ctx, filepath.Join(s.Dir(name), recordLock), nil)
	if err != nil {
		return fmt.Errorf("update record of workspace %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	r, err := s.Load(name)
	if err != nil {
		return err
	}
	change(r)
	return s.Save(r)
}

// Load reads the record of a workspace. The error wraps ErrNotFound if the workspace
// does not exist or is incomplete.
func (s *Store) Load(name string) (*Record, error) {
	data, err := os.ReadFile(filepath.Join(s.Dir(name), recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	if err != nil {
		return nil, err
	}
	r := &Record{}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("read record of workspace %s: %w", name, err)
	}
	r.Name = name
	return r, nil
}

// Names returns the names of all workspaces, also incomplete ones, in order.
func (s *Store) Names() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list workspaces: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Incomplete returns the workspaces that a launch is creating, or has left.
func (s *Store) Incomplete() ([]string, error) {
	names, err := s.Names()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(names, func(name string) bool {
		_, err := s.Load(name)
		return !errors.Is(err, ErrNotFound)
	}), nil
}

// Used returns the disk space that a workspace occupies on the host, in bytes.
func (s *Store) Used(name string) (int64, error) {
	fi, err := os.Stat(filepath.Join(s.Dir(name), diskFile))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return fi.Sys().(*syscall.Stat_t).Blocks * statBlock, nil
}

// statBlock is the unit of st_blocks, in bytes (stat(2)).
const statBlock = 512

// Lock waits until no other process is changing whether a workspace is mounted. The
// error wraps ErrNotFound if it does not exist. The caller must release the lock.
func (s *Store) Lock(ctx context.Context, name string, waiting func()) (*filelock.Lock, error) {
	l, err := filelock.Open(ctx, s.Dir(name), waiting)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	return l, err
}

// Remove removes a workspace that is not mounted, with everything in it. It is
// idempotent.
func (s *Store) Remove(name string) error {
	// The record goes first: without it the rest is an incomplete workspace.
	err := os.Remove(filepath.Join(s.Dir(name), recordFile))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = os.RemoveAll(s.Dir(name))
	}
	if err != nil {
		return fmt.Errorf("remove workspace %s: %w", name, err)
	}
	s.Prune()
	return nil
}

// Prune removes the store's directories if they are empty.
func (s *Store) Prune() { shareddir.Prune(s.dir, filepath.Dir(s.dir)) }
