package setup

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/bot-bottle/bottle/internal/hint"
)

// A bundle is a tar archive of regular files without directories: checksums, in the file
// SHA256SUMS, followed by the release files of one architecture.
const bundleChecksums = "SHA256SUMS"

// Bundle is a bundle that was opened for reading.
type Bundle struct {
	Checksums Checksums
	// Digest is the SHA-256 of the complete archive.
	Digest string

	file    *os.File
	offsets map[string][2]int64 // of a file's content, and its size
}

// OpenBundle reads the list of a bundle's files and takes ownership of file.
func OpenBundle(file *os.File) (b *Bundle, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(hint.Wrap(err, "read bundle "+file.Name()), file.Close())
		}
	}()
	b = &Bundle{file: file, offsets: map[string][2]int64{}}
	h := sha256.New()
	if _, err := io.Copy(h, file); err != nil {
		return nil, err
	}
	b.Digest = sum(h)
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	for t := tar.NewReader(file); ; {
		entry, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, &hint.Error{Err: err, Hint: "bottle setup --make-bundle FILE makes a bundle"}
		}
		if entry.Typeflag != tar.TypeReg || filepath.Base(entry.Name) != entry.Name || entry.Size > maxRelease {
			return nil, fmt.Errorf("unexpected entry %q", entry.Name)
		}
		at, err := file.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		b.offsets[entry.Name] = [2]int64{at, entry.Size}
	}
	text, err := b.Open(context.Background(), bundleChecksums)
	if err != nil {
		return nil, &hint.Error{Err: errors.New("no " + bundleChecksums), Hint: "bottle setup --make-bundle FILE makes a bundle"}
	}
	data, err := io.ReadAll(io.LimitReader(text, 1<<20))
	if err != nil {
		return nil, err
	}
	b.Checksums, err = ParseChecksums(bundleChecksums, data)
	return b, err
}

// Names implements Files.
func (b *Bundle) Names() []string {
	var out []string
	for name := range b.offsets {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// Open implements Files.
func (b *Bundle) Open(_ context.Context, name string) (io.ReadCloser, error) {
	at, ok := b.offsets[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return io.NopCloser(io.NewSectionReader(b.file, at[0], at[1])), nil
}

func (b *Bundle) String() string { return b.file.Name() }

// Close closes the bundle's file.
func (b *Bundle) Close() error { return b.file.Close() }

// MakeBundle fetches all release files of an architecture, verifies them, and writes them as
// a bundle. It returns the names of the files and the SHA-256 of the bundle.
func MakeBundle(ctx context.Context, out io.Writer, cfg Config, sources []Files, sums Checksums) (names []string, digest string, err error) {
	dir, err := os.MkdirTemp("", "bottle-bundle-")
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	got, err := fetchAll(ctx, cfg, sources, sums, nil, dir)
	if err != nil {
		return nil, "", err
	}
	contents := Checksums{}
	for _, f := range got {
		contents[f.Name] = f.sha256
	}
	h := sha256.New()
	t := tar.NewWriter(io.MultiWriter(out, h))
	text := []byte(contents.String())
	if err := addEntry(t, bundleChecksums, int64(len(text)), bytes.NewReader(text)); err != nil {
		return nil, "", err
	}
	for _, f := range got {
		if err := addFile(t, f); err != nil {
			return nil, "", err
		}
		names = append(names, f.Name)
	}
	err = t.Close()
	return names, sum(h), err
}

func addFile(t *tar.Writer, f fetched) error {
	in, err := os.Open(f.path)
	if err != nil {
		return err
	}
	fi, err := in.Stat()
	if err == nil {
		err = addEntry(t, f.Name, fi.Size(), in)
	}
	return errors.Join(err, in.Close())
}

// addEntry writes an entry without time and owner, so that equal files make equal bundles.
func addEntry(t *tar.Writer, name string, size int64, in io.Reader) error {
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, Format: tar.FormatUSTAR}); err != nil {
		return err
	}
	_, err := io.Copy(t, in)
	return err
}

// fetchAll fetches the files of the given parts, or of all, to dir.
func fetchAll(ctx context.Context, cfg Config, sources []Files, sums Checksums, parts []string, dir string) ([]fetched, error) {
	var out []fetched
	var problems hint.Problems
	for _, r := range releases {
		if parts != nil && !slices.Contains(parts, r.part) {
			continue
		}
		c, err := choose(r, cfg.Arch, sums)
		if err == nil {
			cfg.notify("checking " + c.name)
			var f fetched
			f, err = cfg.fetch(ctx, sources, c, dir)
			out = append(out, f)
		}
		problems.Add(err)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return out, problems.Err()
}
