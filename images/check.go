package images

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	store "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// labelChecked marks manifests whose layers have been checked. The value is the
// version of the check and whether it covered all layers or only those present. On a
// layer the value is the version and the media type, which decides how it is read.
const (
	labelChecked = "bottle.checked"
	checkedAll   = "1"
	checkedSome  = "1 some"
)

// checkLayers checks the layers of a manifest, read from cs, with the given
// concurrency, unless that has been done before. If the image is unpacked, missing
// layers are accepted, because another program unpacked them; the layers are checked
// again before the image is next unpacked. The error wraps ErrLayer.
func (s *Store) checkLayers(ctx context.Context, cs content.Provider, manifest ocispec.Descriptor, layers []ocispec.Descriptor, unpacked bool, concurrency int) error {
	info, err := s.ctrd.ContentStore().Info(ctx, manifest.Digest)
	if err != nil && !errdefs.IsNotFound(err) { // during a pull the file may appear before its metadata
		return fmt.Errorf("look up manifest %s: %w", manifest.Digest, err)
	}
	if before := info.Labels[labelChecked]; before == checkedAll || before == checkedSome && unpacked {
		return nil
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(concurrency)
	var missing atomic.Bool
	for _, layer := range layers {
		g.Go(func() error {
			err := checkLayer(gctx, s.ctrd.ContentStore(), cs, layer)
			if errdefs.IsNotFound(err) {
				missing.Store(true)
				return nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	checked := checkedAll
	if missing.Load() {
		checked = checkedSome
	}
	err = label(ctx, s.ctrd.ContentStore(), manifest.Digest, labelChecked, checked)
	if errdefs.IsNotFound(err) {
		return nil // not stored yet: Unpack checks it again
	}
	return err
}

// label sets a label of a blob, or removes it if value is empty.
func label(ctx context.Context, store content.Manager, blob digest.Digest, key, value string) error {
	_, err := store.Update(ctx, content.Info{Digest: blob, Labels: map[string]string{key: value}}, "labels."+key)
	if err != nil {
		return fmt.Errorf("label %s: %w", blob, err)
	}
	return nil
}

// readSize is the size of reads from a compressed layer, in bytes. Each read may be a
// call to the daemon.
const readSize = 1 << 20

// CheckLayer checks a layer (a PAX or GNU tar, plain or compressed with gzip or zstd)
// for entries that escape the image's root. containerd confines such entries when it
// unpacks and does not report them. A layer that has been checked before is not read
// again. The error wraps ErrLayer, also for a layer that cannot be parsed.
func CheckLayer(ctx context.Context, cs content.Store, layer ocispec.Descriptor) error {
	return checkLayer(ctx, cs, cs, layer)
}

// checkLayer is CheckLayer for a layer that is read from cs. Its label is in store.
func checkLayer(ctx context.Context, store content.Manager, cs content.Provider, layer ocispec.Descriptor) error {
	checked := checkedAll + " " + layer.MediaType
	info, err := store.Info(ctx, layer.Digest)
	if err == nil && info.Labels[labelChecked] == checked {
		return nil
	}
	if err := readLayer(ctx, cs, layer); err != nil {
		return err
	}
	err = label(ctx, store, layer.Digest, labelChecked, checked)
	if errdefs.IsNotFound(err) {
		return nil // during a pull the file may appear before its metadata
	}
	return err
}

func readLayer(ctx context.Context, cs content.Provider, layer ocispec.Descriptor) error {
	ra, err := cs.ReaderAt(ctx, layer)
	if err != nil {
		return fmt.Errorf("read layer %s: %w", layer.Digest, err)
	}
	defer func() { _ = ra.Close() }()
	err = checkPacked(ctx, ra, layer.MediaType)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("%w: layer %s: %w", ErrLayer, layer.Digest, shortened(err))
	}
	return nil
}

func checkPacked(ctx context.Context, ra content.ReaderAt, mediaType string) error {
	compressed, err := store.DiffCompression(ctx, mediaType)
	if err != nil {
		return fmt.Errorf("unknown media type %s", mediaType)
	}
	packed := io.NewSectionReader(ra, 0, ra.Size())
	if _, isFile := ra.(*blobFile); isFile && compressed == "" {
		return checkEntries(ctx, packed) // seekable: skips the files' content
	}
	buffered := bufio.NewReaderSize(&untilDone{ctx, packed}, readSize)
	if compressed == "" {
		return checkEntries(ctx, buffered)
	}
	// The same detection as containerd's, whose decompressor may start host programs.
	first, _ := buffered.Peek(10)
	switch compression.DetectCompression(first) {
	case compression.Gzip:
		plain, err := gzip.NewReader(buffered)
		if err != nil {
			return err
		}
		return checkEntries(ctx, plain)
	case compression.Zstd:
		plain, err := zstd.NewReader(buffered)
		if err != nil {
			return err
		}
		defer plain.Close()
		return checkEntries(ctx, plain)
	}
	return checkEntries(ctx, buffered)
}

// untilDone stops reading when ctx ends: skipping one large entry may take long.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (u *untilDone) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(p)
}

// checkEntries rejects entries of a layer's tar that escape the image's root through
// ".." or through one of the layer's own symbolic links. Packing a directory creates
// neither, and careful unpackers confine them, so no image needs them. Unpackers
// interpret absolute names and absolute hard link targets relative to the image's
// root, and some builders write them: they are accepted.
func checkEntries(ctx context.Context, layer io.Reader) error {
	links, size := symlinks{}, 0
	for r := tar.NewReader(layer); ctx.Err() == nil; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name, err := links.resolve(h.Name)
		if err != nil {
			return fmt.Errorf("entry %q escapes the image's root: %w", h.Name, err)
		}
		delete(links, name) // replaced by this entry
		switch h.Typeflag {
		case tar.TypeLink:
			if _, err := links.resolve(h.Linkname); err != nil {
				return fmt.Errorf("hard link %q escapes the image's root: %w", h.Name, err)
			}
		case tar.TypeSymlink:
			// Harmless in a container, whose root is the image's.
			links[name] = h.Linkname
			if size += len(name) + len(h.Linkname); size > maxLinksSize {
				return errors.New("too many symbolic links")
			}
		}
	}
	return ctx.Err()
}

// symlinks are the targets of a layer's symbolic links, by path relative to its root.
type symlinks map[string]string

// maxLinksSize bounds the total size of a layer's link names and targets, in bytes,
// which are kept in memory during the check.
const maxLinksSize = 128 << 20

// maxLinks is the number of links followed in one path, the kernel's limit
// (path_resolution(7)).
const maxLinks = 40

// resolve returns the path relative to the root that a name refers to. A name that
// contains ".." or escapes the root is an error.
func (s symlinks) resolve(name string) (string, error) {
	if slices.Contains(strings.Split(name, "/"), "..") {
		return "", errors.New(`its name contains ".."`)
	}
	at, rest, via := ".", strings.Split(path.Clean(name), "/"), ""
	for followed := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		next := path.Join(at, part)
		switch target, is := s[next]; {
		case part == ".." && at == ".":
			return "", fmt.Errorf("through %q, a link to %q", via, s[via])
		case !is || len(rest) == 0:
			at = next
		case path.IsAbs(target):
			return "", fmt.Errorf("through %q, a link to %q", next, target)
		case followed == maxLinks || len(target) >= unix.PathMax: // symlink(2) creates none so long
			return "", fmt.Errorf("through %q, a link that cannot be resolved", next)
		default:
			followed++
			via, rest = next, append(strings.Split(target, "/"), rest...)
		}
	}
	return at, nil
}

// blobs reads blobs directly from the daemon's content directory, if the daemon
// reports it and this process can access it, and through the daemon otherwise.
type blobs struct {
	ctrd *containerd.Client
	once sync.Once
	dir  string // empty: unknown
}

func (s *Store) blobs() content.Provider { return &blobs{ctrd: s.ctrd} }

// ReaderAt implements content.Provider.
func (b *blobs) ReaderAt(ctx context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, err
	}
	b.once.Do(func() { b.findDir(ctx) })
	if b.dir == "" {
		return b.ctrd.ContentStore().ReaderAt(ctx, d)
	}
	f, err := os.Open(filepath.Join(b.dir, d.Digest.Algorithm().String(), d.Digest.Encoded()))
	if err != nil {
		return b.ctrd.ContentStore().ReaderAt(ctx, d)
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &blobFile{File: f, size: fi.Size()}, nil
}

func (b *blobs) findDir(ctx context.Context) {
	got, err := b.ctrd.IntrospectionService().Plugins(ctx, "type==io.containerd.content.v1")
	if err != nil {
		return // the blobs are read through the daemon
	}
	for _, p := range got.Plugins {
		if root := p.Exports["root"]; root != "" {
			b.dir = filepath.Join(root, "blobs")
		}
	}
}

type blobFile struct {
	*os.File
	size int64
}

func (f *blobFile) Size() int64 { return f.size }

// incomingBlobs provides blobs that the daemon is still fetching: it waits for a
// missing blob until fetched is closed.
type incomingBlobs struct {
	content.Provider
	fetched chan struct{}
}

// Polling intervals for a missing blob. The daemon's progress events may be 300 ms
// late.
const (
	minPoll = 2 * time.Millisecond
	maxPoll = 50 * time.Millisecond
)

// ReaderAt implements content.Provider.
func (a *incomingBlobs) ReaderAt(ctx context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	for wait := minPoll; ; wait = min(2*wait, maxPoll) {
		fetched := false
		select {
		case <-a.fetched:
			fetched = true
		default:
		}
		ra, err := a.Provider.ReaderAt(ctx, d)
		if fetched || !errdefs.IsNotFound(err) {
			return ra, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-a.fetched:
		case <-time.After(wait):
		}
	}
}
