package worktree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/bot-bottle/bottle/internal/filetree"
)

// Diff writes the agent's changes as a patch that `git apply` accepts, or with stat as a
// list of files with the number of changed lines. The old versions are the user's files:
// where such a file has changed since it was copied, the patch shows the difference to
// what it is now. color adds colours for a terminal.
func (w *Work) Diff(ctx context.Context, out io.Writer, stat, color bool) ([]Change, error) {
	ctx, cancel := w.Limits.context(ctx)
	defer cancel()
	changes, err := w.Changes(ctx)
	if err != nil || len(changes) == 0 {
		return changes, err
	}
	g, err := newGit(w.Caller, "")
	if err != nil {
		return nil, err
	}
	dir, remove, err := w.tempDir()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	if err := w.stage(ctx, dir, changes); err != nil {
		return nil, err
	}
	args := []string{"diff", "--no-index", "--no-ext-diff", "--no-textconv", "--no-prefix", "--no-renames", "--binary"}
	if stat {
		args = append(args, "--stat=120")
	}
	args = append(args, "--color="+map[bool]string{true: "always", false: "never"}[color])
	g = g.inTemp(dir)
	g.config = []string{"core.attributesFile=/dev/null", "core.quotePath=true", "diff.external="}
	err = g.run(ctx, nil, out, append(args, "--", "a", "b")...)
	if exitCode(err) == 1 { // they differ
		err = nil
	}
	return changes, err
}

// stage writes the old and the new version of every change below a and b.
func (w *Work) stage(ctx context.Context, dir string, changes []Change) error {
	root, err := w.openTop()
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	var to *filetree.Root
	err = w.asUser(func() (err error) {
		if to, err = filetree.Open(dir); err != nil {
			return err
		}
		return errors.Join(to.Mkdir("a", 0o700), to.Mkdir("b", 0o700))
	})
	if err != nil {
		return err
	}
	defer func() { _ = to.Close() }()
	var want []string
	var bytes int64
	for _, c := range changes {
		if c.New.Kind == filetree.File {
			want = append(want, c.Name)
			if bytes += c.New.Size; bytes < 0 || bytes > w.Limits.Bytes {
				return fmt.Errorf("%w: the changed files have more than %d bytes, with %s", ErrTooLarge, w.Limits.Bytes, printable(c.Name))
			}
		}
	}
	err = w.asUser(func() error { return w.stageOthers(root, to, changes) })
	if err != nil || len(want) == 0 {
		return err
	}
	return w.fetchFiles(ctx, want, w.Limits.Bytes, func(name string, e filetree.Entry, r io.Reader) error {
		if e.Kind != filetree.File {
			return nil
		}
		return put(to, "b/"+name, func(name string) error { return to.Create(name, r, e.Size, e.Mode|0o600) })
	})
}

// stageOthers writes the user's files, and the links on both sides.
func (w *Work) stageOthers(root, to *filetree.Root, changes []Change) error {
	for _, c := range changes {
		now, err := root.Describe(c.Name)
		if err != nil {
			return err
		}
		if !equal(now, c.Old) && !equal(now, c.New) {
			w.notice(c.Name, "has changed here since it was copied")
		}
		switch now.Kind {
		case filetree.Link:
			err = put(to, "a/"+c.Name, func(name string) error { return to.Symlink(now.Link, name) })
		case filetree.File:
			err = copyFile(root, c.Name, to, "a/"+c.Name)
		}
		if err == nil && c.New.Kind == filetree.Link {
			err = put(to, "b/"+c.Name, func(name string) error { return to.Symlink(c.New.Link, name) })
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func copyFile(from *filetree.Root, name string, to *filetree.Root, as string) error {
	f, e, err := from.OpenFile(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read only
	return put(to, as, func(name string) error { return to.Create(name, f, e.Size, e.Mode|0o600) })
}

// put creates the parents of a file and then the file.
func put(root *filetree.Root, name string, create func(string) error) error {
	if err := makeParents(root, filepath.Dir(name)); err != nil {
		return err
	}
	return create(name)
}

func makeParents(root *filetree.Root, dir string) error {
	e, err := root.Lstat(dir)
	if err != nil || e.Kind == filetree.Dir {
		return err
	}
	if err := makeParents(root, filepath.Dir(dir)); err != nil {
		return err
	}
	if err := root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}
