package worktree

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/filetree"
)

// quarantinePrefix begins the names of temporary repositories in the user's .git directory.
const quarantinePrefix = "bottle-fetch-"

// quarantine creates a repository that borrows the objects of the user's and receives the
// bottle's. It is inside the user's .git directory, where there is space for a fetch. Those
// that killed processes have left are removed.
func (w *Work) quarantine(ctx context.Context, user *git, here *repository) (*git, func() error, error) {
	format, err := user.line(ctx, "rev-parse", "--show-object-format")
	if err != nil {
		return nil, nil, err
	}
	dir, remove, err := w.quarantineDir(here.common)
	if err != nil {
		return nil, nil, fmt.Errorf("create temporary repository: %w", err)
	}
	q := user.in(dir)
	q.config = []string{"core.alternateRefsCommand=:"}
	if _, err := q.output(ctx, "init", "--quiet", "--bare", "--template=", "--object-format="+format, dir); err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	err = w.asUser(func() error {
		if shallow, err := os.ReadFile(filepath.Join(here.common, "shallow")); err == nil {
			if err := os.WriteFile(filepath.Join(dir, "shallow"), shallow, 0o600); err != nil {
				return err
			}
		}
		return os.WriteFile(filepath.Join(dir, "objects/info/alternates"), []byte(filepath.Join(here.common, "objects")+"\n"), 0o600)
	})
	if err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	q.env = append(q.env, "GIT_DIR="+dir)
	return q, remove, nil
}

// quarantineDir creates the directory of a temporary repository. It stays locked until it
// is removed, so that another process recognizes those that are in use.
func (w *Work) quarantineDir(common string) (dir string, remove func() error, err error) {
	var root *filetree.Root
	var name string
	var unlock func() error
	err = w.asUser(func() (err error) {
		if root, err = filetree.Open(common); err != nil {
			return err
		}
		sweep(root)
		if name, unlock, err = lockNew(root); err != nil {
			return errors.Join(err, root.Close())
		}
		return nil
	})
	return filepath.Join(common, name), func() error {
		return errors.Join(w.asUser(func() error { return root.RemoveAll(name) }), unlock(), root.Close())
	}, err
}

// lockNew creates and locks a directory.
func lockNew(root *filetree.Root) (name string, unlock func() error, err error) {
	for {
		name = quarantinePrefix + rand.Text()
		if err := root.Mkdir(name, 0o700); err != nil {
			return "", nil, err
		}
		unlock, err = root.Lock(name)
		if !gone(err) { // unless another process has swept it before the lock
			return name, unlock, err
		}
	}
}

// gone reports whether a directory could not be locked because another process uses or
// has removed it.
func gone(err error) bool {
	return errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, os.ErrNotExist)
}

// sweep removes the temporary repositories that nobody has locked. One that cannot be
// removed, such as another user's in a shared repository, does not prevent a fetch.
func sweep(root *filetree.Root) {
	left, err := root.Names(".", quarantinePrefix)
	if err != nil {
		return
	}
	for _, name := range left {
		unlock, err := root.Lock(name)
		if err != nil {
			continue // in use
		}
		_ = root.RemoveAll(name)
		_ = unlock()
	}
}
