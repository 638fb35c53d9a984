package worktree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/bot-bottle/bottle/internal/filetree"
)

// CopyOut copies a file or a directory of the bottle to the host, as `docker cp` places
// it: into dest if that is a directory, else to that name. path is absolute; of one that
// ends with "/." only the directory's content is copied. Files that exist are replaced.
// git's own directories, links that lead out, devices and the like are left out with a
// notice. After an error a part may have been copied.
func (w *Work) CopyOut(ctx context.Context, path, dest string) error {
	ctx, cancel := w.Limits.context(ctx)
	defer cancel()
	if filetree.IsGit(filepath.Base(filepath.Clean(path))) {
		return fmt.Errorf("%w: %s belongs to a git repository, whose settings can start programs", ErrRefused, path)
	}
	var omitted bytes.Buffer
	cmd := Command{Args: files(filetree.CommandGet, path), Stderr: &capped{w: &omitted, left: 64 << 10}}
	err := stream(ctx, w.Inside, cmd, w.Limits.Bytes+w.Limits.Files*(16<<10), func(r io.Reader) error {
		return w.asUser(func() error { return w.unpackTo(r, path, dest) })
	})
	if err != nil {
		return fmt.Errorf("copy %s from the bottle: %w", path, err)
	}
	for line := range strings.Lines(omitted.String()) {
		if name, ok := strings.CutPrefix(line, filetree.OmittedMark); ok {
			w.notice(strings.TrimSpace(name), unsupported)
		}
	}
	return nil
}

func (w *Work) unpackTo(r io.Reader, path, dest string) error {
	// The first entry says what is copied, and so where it goes.
	head, rest, err := filetree.PeekDir(r)
	if err != nil {
		return err
	}
	dir, name, err := filetree.Place(dest, path, head)
	if err != nil {
		return err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return err
	}
	root, err := filetree.Open(dir)
	if err != nil {
		return err
	}
	err = filetree.Unpack(root, rest, filetree.Unpacking{
		As: name, UID: -1, GID: -1, MaxBytes: w.Limits.Bytes, MaxEntries: w.Limits.Files, Replace: true,
		Notice: func(name, reason string) { w.notice(name, "is left out: it "+reason) },
	})
	return errors.Join(err, root.Close())
}

// CopyIn copies a file or a directory of the host into the bottle, where it belongs to the
// agent's user. Placement is as for CopyOut. Symbolic links are copied as links.
func (w *Work) CopyIn(ctx context.Context, source, path string) error {
	ctx, cancel := w.Limits.context(ctx)
	defer cancel()
	dir, name := filepath.Dir(filepath.Clean(source)), filepath.Base(filepath.Clean(source))
	if strings.HasSuffix(source, "/") || strings.HasSuffix(source, "/.") || source == "." || name == "/" {
		dir, name = source, "."
	}
	var root *filetree.Root
	var e filetree.Entry
	err := w.asUser(func() (err error) {
		if root, err = filetree.Open(dir); err != nil {
			return err
		}
		e, err = root.Lstat(name)
		return err
	})
	if root != nil {
		defer func() { _ = root.Close() }() // read only
	}
	if err != nil {
		return err
	}
	kind := "file"
	switch e.Kind {
	case filetree.Missing:
		return fmt.Errorf("no such file: %s", source)
	case filetree.Other:
		return fmt.Errorf("%s is not a regular file, a directory or a symbolic link", source)
	case filetree.Dir:
		kind = "dir"
	}
	r, pw := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := w.asUser(func() error {
			return filetree.PackAll(root, name, ".", pw, func(name string) {
				w.notice(name, unsupported)
			})
		})
		_ = pw.CloseWithError(err) // nil: EOF
		packed <- err
	}()
	err = stream(ctx, w.Inside, Command{Args: files(filetree.CommandPut, path, source, kind), Stdin: r}, 1<<20, func(r io.Reader) error {
		_, err := io.Copy(io.Discard, r)
		return err
	})
	_ = r.CloseWithError(errors.New("the bottle reads no more"))
	if perr := <-packed; err == nil {
		err = perr
	}
	if err != nil {
		return fmt.Errorf("copy %s into the bottle: %w", source, err)
	}
	return nil
}
