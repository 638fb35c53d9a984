package worktree

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/bot-bottle/bottle/internal/atomicfile"
	"github.com/bot-bottle/bottle/internal/filetree"
)

// Base describes a copy at the time when it was made. It is stored on the host, where the
// agent cannot change it, and work is brought back by comparison with it.
type Base struct {
	Top    string    `json:"top"`              // the host's directory that the copy's root corresponds to; absolute
	Prefix string    `json:"prefix,omitempty"` // the directory that was asked for, relative to Top; empty: Top itself
	Target string    `json:"target"`           // the copy in the bottle; absolute
	Repos  []Repo    `json:"repos,omitempty"`  // git repositories; the one at Top is first
	Time   time.Time `json:"time"`

	// Entries are the files that were copied, without git's own. They are stored in a file
	// of their own.
	Entries map[string]filetree.Entry `json:"-"`
}

// Repo is a git repository in the copy.
type Repo struct {
	Path    string `json:"path"`             // relative to Top; "." is Top
	Head    string `json:"head,omitempty"`   // the commit that was checked out; empty: none
	Branch  string `json:"branch,omitempty"` // its branch; empty: none
	Partial bool   `json:"partial,omitempty"`
}

// Git reports whether the copy's root is a git repository.
func (b *Base) Git() bool { return len(b.Repos) > 0 && b.Repos[0].Path == "." }

// WorkDir returns the directory in the bottle that corresponds to the one that was asked
// for.
func (b *Base) WorkDir() string { return filepath.Join(b.Target, b.Prefix) }

// Files of a Base.
const (
	baseFile = "worktree.json"
	listFile = "worktree.list"
)

// Save stores the Base in a directory.
func (b *Base) Save(dir string) error {
	data, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return err
	}
	if err := b.saveList(filepath.Join(dir, listFile)); err != nil {
		return fmt.Errorf("save the list of copied files: %w", err)
	}
	// Last: without it there is no Base.
	if err := atomicfile.Write(filepath.Join(dir, baseFile), data, 0o600); err != nil {
		return fmt.Errorf("save what was copied: %w", err)
	}
	return nil
}

func (b *Base) saveList(path string) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	l := filetree.NewListWriter(f)
	for _, e := range b.Entries {
		if err := l.Write(e); err != nil {
			return err
		}
	}
	if err := l.Close(); err != nil {
		return err
	}
	return f.Sync()
}

// ErrNoBase means that a bottle has no copy of a directory.
var ErrNoBase = errors.New("has no copy of a directory")

// Load reads a Base that was saved in a directory.
func Load(dir string) (*Base, error) {
	data, err := os.ReadFile(filepath.Join(dir, baseFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoBase
	}
	if err != nil {
		return nil, fmt.Errorf("read what was copied: %w", err)
	}
	b := &Base{Entries: map[string]filetree.Entry{}}
	if err := json.Unmarshal(data, b); err != nil {
		return nil, fmt.Errorf("read what was copied: %w", err)
	}
	f, err := os.Open(filepath.Join(dir, listFile))
	if err != nil {
		return nil, fmt.Errorf("read the list of copied files: %w", err)
	}
	defer func() { _ = f.Close() }() // read only
	err = filetree.ReadList(f, func(e filetree.Entry) error {
		b.Entries[e.Name] = e
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the list of copied files: %w", err)
	}
	return b, nil
}

// repoOf returns the innermost repository that contains a file.
func (b *Base) repoOf(name string) (Repo, bool) {
	var found Repo
	for _, r := range b.Repos {
		if r.Path == "." && found.Path == "" || strings.HasPrefix(name, r.Path+"/") && len(r.Path) > len(found.Path) {
			found = r
		}
	}
	return found, found.Path != ""
}

// innermost returns the repositories, those inside others first.
func (b *Base) innermost() []Repo {
	out := slices.Clone(b.Repos)
	slices.SortStableFunc(out, func(x, y Repo) int { return depth(y.Path) - depth(x.Path) })
	return out
}

func depth(path string) int {
	if path == "." {
		return 0
	}
	return 1 + strings.Count(path, "/")
}
