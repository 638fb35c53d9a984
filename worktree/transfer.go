package worktree

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/bot-bottle/bottle/internal/filetree"
)

// fetchFiles reads files of the copy and calls fn for each with the user's rights. What
// no longer exists is omitted. names are those of a list, which are clean.
func (w *Work) fetchFiles(ctx context.Context, list []string, limit int64, fn func(name string, e filetree.Entry, r io.Reader) error) error {
	wanted := map[string]bool{}
	for _, name := range list {
		wanted[name] = true
	}
	cmd := Command{Args: files(filetree.CommandPack, w.Base.Target), Stdin: names(list)}
	// Headers and padding take up to a few KiB for each file.
	return stream(ctx, w.Inside, cmd, limit+int64(len(list)+1)*(16<<10), func(r io.Reader) error {
		return w.asUser(func() error {
			t := tar.NewReader(r)
			for left := limit; ; {
				h, err := t.Next()
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err != nil {
					return fmt.Errorf("read archive: %w", err)
				}
				name := filepath.Clean(h.Name)
				if !wanted[name] {
					return fmt.Errorf("read archive: unexpected file %.200q", name)
				}
				delete(wanted, name)
				if left -= h.Size; h.Size < 0 || left < 0 {
					return fmt.Errorf("%w: %.200q exceeds %d bytes", ErrTooLarge, name, limit)
				}
				if err := fn(name, entryOf(h), t); err != nil {
					return err
				}
			}
		})
	})
}

func entryOf(h *tar.Header) filetree.Entry {
	e := filetree.Entry{Name: filepath.Clean(h.Name), Mode: uint32(h.Mode) & 0o777, Size: h.Size, MTime: clampTime(h.ModTime), Link: h.Linkname}
	switch h.Typeflag {
	case tar.TypeReg:
		e.Kind = filetree.File
	case tar.TypeDir:
		e.Kind = filetree.Dir
	case tar.TypeSymlink:
		e.Kind = filetree.Link
	default:
		e.Kind = filetree.Other
	}
	return e
}

// clampTime keeps a time in the range of a nanosecond count.
func clampTime(t time.Time) int64 {
	if t.Year() < 1678 || t.Year() > 2261 {
		return 0
	}
	return t.UnixNano()
}
