package worktree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/internal/asuser"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/filetree"
)

// Change is a file that differs between what was copied in and what the bottle has now.
type Change struct {
	Name     string // relative to Base.Top
	Old, New filetree.Entry
}

// Status returns the letter that git status uses: A, M, D, or T if the file's type has
// changed.
func (c Change) Status() string {
	switch {
	case c.Old.Kind == filetree.Missing:
		return "A"
	case c.New.Kind == filetree.Missing:
		return "D"
	case c.Old.Kind != c.New.Kind:
		return "T"
	}
	return "M"
}

// Work is the work of an agent: a Base, and the bottle that has a copy of it.
type Work struct {
	Base   *Base
	Inside Inside
	Caller caller.Caller
	Limits Limits
	// Notice receives a sentence about what is left out; it may be nil.
	Notice func(string)
}

// notice passes on a sentence about a file.
func (w *Work) notice(name, text string) {
	if w.Notice != nil {
		w.Notice(printable(name) + " " + text)
	}
}

const unsupported = "is left out: it is not a regular file, a directory or a symbolic link"

func (w *Work) asUser(fn func() error) error { return asuser.Run(w.Caller.User(), fn) }

// Changes compares the copy with what was copied in. Repositories' own files are not
// compared, and new files that git ignores are left out. The changes are ordered by name.
func (w *Work) Changes(ctx context.Context) ([]Change, error) { return w.compare(ctx, false) }

// compare is Changes. With trustTimes, a file of the same size and time of modification
// counts as unchanged without being read, as git does. An agent can set that time.
func (w *Work) compare(ctx context.Context, trustTimes bool) ([]Change, error) {
	ctx, cancel := w.Limits.context(ctx)
	defer cancel()
	c := &comparison{work: w, trustTimes: trustTimes, seen: map[string]bool{}}
	if err := c.list(ctx); err != nil {
		return nil, fmt.Errorf("list the bottle's files: %w", err)
	}
	if err := c.hash(ctx); err != nil {
		return nil, fmt.Errorf("compare the bottle's files: %w", err)
	}
	for name, old := range w.Base.Entries {
		if !c.seen[name] {
			c.changes = append(c.changes, Change{name, old, filetree.Entry{Name: name, Kind: filetree.Missing}})
		}
	}
	if err := c.dropIgnored(ctx); err != nil {
		return nil, fmt.Errorf("find ignored files: %w", err)
	}
	if n := int64(len(c.changes)); n > w.Limits.Files {
		return nil, fmt.Errorf("%w: %d changed files (max %d)", ErrTooLarge, n, w.Limits.Files)
	}
	slices.SortFunc(c.changes, func(a, b Change) int { return strings.Compare(a.Name, b.Name) })
	return c.changes, nil
}

type comparison struct {
	work       *Work
	trustTimes bool
	seen       map[string]bool // names of the Base
	same       []string        // with the same kind and size: the content must be compared
	changes    []Change
}

// maxNew bounds the number of new files that are held in memory, ignored ones included.
const maxNew = 1_000_000

func (c *comparison) list(ctx context.Context) error {
	base := c.work.Base
	added := 0
	return stream(ctx, c.work.Inside, Command{Args: files(filetree.CommandList, base.Target)}, c.work.Limits.Listing, func(r io.Reader) error {
		return filetree.ReadList(r, func(e filetree.Entry) error {
			old, known := base.Entries[e.Name]
			switch {
			case e.Name == "." || isGitName(e.Name):
				return nil
			case !known:
				if added++; added > maxNew {
					return fmt.Errorf("%w: more than %d new files", ErrTooLarge, maxNew)
				}
				c.changes = append(c.changes, Change{e.Name, filetree.Entry{Name: e.Name, Kind: filetree.Missing}, e})
				return nil
			case c.seen[e.Name]:
				return filetree.ErrFormat
			}
			c.seen[e.Name] = true
			sameSize := old.Kind == filetree.File && e.Kind == filetree.File && old.Size == e.Size
			if sameSize && c.trustTimes && old.MTime == e.MTime && old.Mode&0o777 == e.Mode&0o777 {
				return nil
			}
			if sameSize {
				c.same = append(c.same, e.Name)
			} else if !equal(old, e) {
				c.changes = append(c.changes, Change{e.Name, old, e})
			}
			return nil
		})
	})
}

// isGitName reports whether a file is a repository's own directory, or the file that
// stands for it.
func isGitName(name string) bool { return filepath.Base(name) == ".git" }

// equal reports whether two files are the same, apart from their times.
func equal(a, b filetree.Entry) bool {
	if a.Kind != b.Kind {
		return false
	}
	switch a.Kind {
	case filetree.File:
		return a.Sum == b.Sum && a.Mode&0o777 == b.Mode&0o777
	case filetree.Link:
		return a.Link == b.Link
	case filetree.Dir, filetree.Missing:
		return true
	}
	return false
}

// hash compares the contents of files of equal size.
func (c *comparison) hash(ctx context.Context) error {
	if len(c.same) == 0 {
		return nil
	}
	return c.work.hashes(ctx, c.same, func(e filetree.Entry) {
		if old := c.work.Base.Entries[e.Name]; !equal(old, e) {
			c.changes = append(c.changes, Change{e.Name, old, e})
		}
	})
}

// hashes describes files of the bottle, with the hashes of their contents.
func (w *Work) hashes(ctx context.Context, list []string, fn func(filetree.Entry)) error {
	cmd := Command{Args: files(filetree.CommandHash, w.Base.Target), Stdin: names(list)}
	n := 0
	return stream(ctx, w.Inside, cmd, w.Limits.Listing, func(r io.Reader) error {
		err := filetree.ReadList(r, func(e filetree.Entry) error {
			if n >= len(list) || e.Name != list[n] {
				return filetree.ErrFormat
			}
			n++
			fn(e)
			return nil
		})
		if err == nil && n != len(list) {
			return filetree.ErrFormat
		}
		return err
	})
}

// names returns a reader of names that end with NUL.
func names(list []string) io.Reader {
	var b bytes.Buffer
	for _, name := range list {
		b.WriteString(name)
		b.WriteByte(0)
	}
	return &b
}

// dropIgnored removes new files that git ignores. The patterns are those of the user, and
// the .gitignore files as the bottle has them now: a new project comes with its own.
// git reads them in an empty repository, so that nothing else of the bottle's is used.
func (c *comparison) dropIgnored(ctx context.Context) error {
	for _, repo := range c.work.Base.Repos {
		if err := c.dropIgnoredOf(ctx, repo); err != nil {
			return err
		}
	}
	return nil
}

func (c *comparison) dropIgnoredOf(ctx context.Context, repo Repo) error {
	var added []string
	for _, ch := range c.changes {
		if ch.Old.Kind != filetree.Missing {
			continue
		}
		if r, ok := c.work.Base.repoOf(ch.Name); ok && r.Path == repo.Path {
			name := "./" + within(repo.Path, ch.Name) // ":(glob)x" would be a pattern
			if ch.New.Kind == filetree.Dir {
				name += "/" // patterns can be for directories only
			}
			added = append(added, name)
		}
	}
	if len(added) == 0 {
		return nil
	}
	out, err := c.checkIgnore(ctx, repo, added)
	if err != nil {
		return err
	}
	ignored := map[string]bool{}
	for name := range fields(out) {
		ignored[filepath.Join(repo.Path, name)] = true
	}
	c.changes = slices.DeleteFunc(c.changes, func(ch Change) bool {
		return ch.Old.Kind == filetree.Missing && ignored[ch.Name]
	})
	return nil
}

// checkIgnore returns which names git ignores.
func (c *comparison) checkIgnore(ctx context.Context, repo Repo, added []string) (out []byte, err error) {
	w := c.work
	host := filepath.Join(w.Base.Top, repo.Path)
	user, err := newGit(w.Caller, host)
	if err != nil {
		return nil, err
	}
	info, err := user.line(ctx, "rev-parse", "--path-format=absolute", "--git-path", "info/exclude")
	if err != nil {
		return nil, err
	}
	dir, remove, err := w.tempDir()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	g := user.inTemp(dir)
	if _, err := g.output(ctx, "init", "--quiet", "--template="); err != nil {
		return nil, err
	}
	if err := w.copyIgnoreFiles(ctx, repo, c, dir); err != nil {
		return nil, err
	}
	err = w.asUser(func() error {
		data, err := os.ReadFile(info)
		if err != nil {
			return nil //nolint:nilerr // there is none
		}
		if err := os.MkdirAll(filepath.Join(dir, ".git/info"), 0o700); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, ".git/info/exclude"), data, 0o600)
	})
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	err = g.run(ctx, names(added), &buf, "check-ignore", "--no-index", "--stdin", "-z")
	if exitCode(err) == 1 { // none
		err = nil
	}
	return buf.Bytes(), err
}

// copyIgnoreFiles copies the repository's .gitignore files to dir: the user's, or the
// bottle's where they have changed.
func (w *Work) copyIgnoreFiles(ctx context.Context, repo Repo, c *comparison, dir string) error {
	changed := map[string]Change{}
	for _, ch := range c.changes {
		changed[ch.Name] = ch
	}
	var fromBottle, fromUser []string
	consider := func(name string) {
		if r, ok := w.Base.repoOf(name); filepath.Base(name) != ".gitignore" || !ok || r.Path != repo.Path {
			return
		}
		if ch, ok := changed[name]; !ok {
			fromUser = append(fromUser, name)
		} else if ch.New.Kind == filetree.File {
			fromBottle = append(fromBottle, name)
		}
	}
	for name := range w.Base.Entries {
		consider(name)
	}
	for name, ch := range changed {
		if ch.Old.Kind == filetree.Missing {
			consider(name)
		}
	}
	err := w.asUser(func() error {
		for _, name := range fromUser {
			to := filepath.Join(dir, within(repo.Path, name))
			data, err := os.ReadFile(filepath.Join(w.Base.Top, name))
			if err != nil {
				continue // removed by the user
			}
			if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
				return err
			}
			if err := os.WriteFile(to, data, 0o600); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || len(fromBottle) == 0 {
		return err
	}
	return w.fetchFiles(ctx, fromBottle, maxIgnoreFiles, func(name string, _ filetree.Entry, r io.Reader) error {
		to := filepath.Join(dir, within(repo.Path, name))
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			return err
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		return os.WriteFile(to, data, 0o600)
	})
}

// maxIgnoreFiles bounds the size of all .gitignore files of a bottle, in bytes.
const maxIgnoreFiles = 64 << 20

// tempDir creates a directory of the user's. The caller must call remove.
func (w *Work) tempDir() (dir string, remove func() error, err error) {
	err = w.asUser(func() (err error) {
		dir, err = os.MkdirTemp("", "bottle-")
		return err
	})
	return dir, func() error { return w.asUser(func() error { return os.RemoveAll(dir) }) }, err
}
