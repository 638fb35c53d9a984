package filetree

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// Header returns the tar header of an entry.
func (e Entry) Header() *tar.Header {
	h := &tar.Header{
		Name: e.Name, Mode: int64(e.Mode & 0o777), ModTime: time.Unix(0, e.MTime),
		Format: tar.FormatPAX, // times in nanoseconds
	}
	switch e.Kind {
	case Dir:
		h.Typeflag, h.Name = tar.TypeDir, e.Name+"/"
	case Link:
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.Link
	default:
		h.Typeflag, h.Size = tar.TypeReg, e.Size
	}
	return h
}

// Add writes a file of the root to an archive under the given name, and its content also
// to hash, which may be nil. A file that no longer exists, or that is neither a regular
// file, a directory nor a symbolic link, is omitted; ok is then false. A file that becomes
// shorter meanwhile is filled with zeros, as tar(1) does. The archive has no later times
// than latest, in nanoseconds since 1970, if that is not 0.
func (r *Root) Add(w *tar.Writer, name, as string, hash io.Writer, latest int64) (e Entry, ok bool, err error) {
	at := func(t int64) int64 {
		if latest == 0 {
			return t
		}
		return min(t, latest)
	}
	if e, err = r.Lstat(name); err != nil {
		return e, false, err
	}
	switch e.Kind {
	case Missing, Other:
		return e, false, nil
	case Dir, Link:
		e.Name, e.MTime = as, at(e.MTime)
		return e, true, w.WriteHeader(e.Header())
	}
	f, e, err := r.OpenFile(name)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, errNotRegular) {
			return e, false, nil
		}
		return e, false, err
	}
	defer func() { _ = f.Close() }() // read only
	e.Name, e.MTime = as, at(e.MTime)
	if err := w.WriteHeader(e.Header()); err != nil {
		return e, false, err
	}
	var out io.Writer = w
	if hash != nil {
		out = io.MultiWriter(w, hash)
	}
	return e, true, copyExactly(out, f, e.Size)
}

func copyExactly(w io.Writer, r io.Reader, size int64) error {
	n, err := io.CopyN(w, r, size)
	if errors.Is(err, io.EOF) {
		_, err = io.CopyN(w, zeros{}, size-n)
	}
	return err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// Pack reads names that end with NUL and writes an archive of those files. What no longer
// exists is omitted.
func Pack(r *Root, names io.Reader, w io.Writer) error {
	t := tar.NewWriter(w)
	err := ReadNames(names, func(name string) error {
		_, _, err := r.Add(t, name, name, nil, 0)
		return err
	})
	if err != nil {
		return err
	}
	return t.Close()
}

// PackAll writes an archive of a file or a directory with everything in it. The names
// begin with as, or are relative if as is ".". Devices, sockets and FIFOs are omitted and
// passed to omitted.
func PackAll(r *Root, name, as string, w io.Writer, omitted func(string)) error {
	t := tar.NewWriter(w)
	err := r.Walk(name, func(e Entry) error {
		rel, err := filepath.Rel(name, e.Name)
		if err != nil {
			return err
		}
		to := filepath.Join(as, rel)
		if e.Kind == Other {
			omitted(e.Name)
			return nil
		}
		if _, ok, err := r.Add(t, e.Name, to, nil, 0); err != nil || !ok {
			return err
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("pack %s: %w", name, err)
	}
	return t.Close()
}
