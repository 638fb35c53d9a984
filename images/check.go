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

// labelChecked is on manifests whose layers have been looked at, with the version of
// what was looked for: all of them, or those that were there.
const (
	labelChecked = "bottle.checked"
	checkedAll   = "1"
	checkedSome  = "1 some"
)

// checkLayers looks at the layers of a manifest, read from cs, so many at once,
// unless that has been done. A layer that is not there has been unpacked by others,
// if the image is unpacked; before it comes to be, all that is there is looked at
// again. The error wraps ErrLayer.
func (s *Store) checkLayers(ctx context.Context, cs content.Provider, manifest ocispec.Descriptor, layers []ocispec.Descriptor, unpacked bool, atOnce int) error {
	info, err := s.ctrd.ContentStore().Info(ctx, manifest.Digest)
	if err != nil && !errdefs.IsNotFound(err) { // of what is just coming, the file may be seen first
		return fmt.Errorf("look up manifest %s: %w", manifest.Digest, err)
	}
	if before := info.Labels[labelChecked]; before == checkedAll || before == checkedSome && unpacked {
		return nil
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	var absent atomic.Bool
	for _, layer := range layers {
		g.Go(func() error {
			err := CheckLayer(gctx, cs, layer)
			if errdefs.IsNotFound(err) {
				absent.Store(true)
				return nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	seen := checkedAll
	if absent.Load() {
		seen = checkedSome
	}
	err = s.label(ctx, manifest.Digest, labelChecked, seen)
	if errdefs.IsNotFound(err) {
		return nil // it is still coming, and is looked at again
	}
	return err
}

// label sets a label of a blob, or takes it away if value is empty.
func (s *Store) label(ctx context.Context, blob digest.Digest, key, value string) error {
	_, err := s.ctrd.ContentStore().Update(ctx, content.Info{Digest: blob, Labels: map[string]string{key: value}}, "labels."+key)
	if err != nil {
		return fmt.Errorf("label %s: %w", blob, err)
	}
	return nil
}

// readSize is how much of a packed layer is read at once, in bytes: each time may be
// a call to the daemon.
const readSize = 1 << 20

// CheckLayer looks at a layer (a tar, PAX or GNU, plain or compressed by gzip or
// zstd) for entries that lead out of the image's root. containerd, which unpacks,
// keeps those in and says nothing of it. The error wraps ErrLayer, also when the
// layer is no such thing.
func CheckLayer(ctx context.Context, cs content.Provider, layer ocispec.Descriptor) error {
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
		return fmt.Errorf("it is of a kind that bottle does not know: %s", mediaType)
	}
	packed := io.NewSectionReader(ra, 0, ra.Size())
	if _, isFile := ra.(*blobFile); isFile && compressed == "" {
		return checkEntries(ctx, packed) // can seek: what is in the entries need not be read
	}
	buffered := bufio.NewReaderSize(&untilDone{ctx, packed}, readSize)
	if compressed == "" {
		return checkEntries(ctx, buffered)
	}
	// As containerd tells it; which may start programs of the host's to decompress.
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

// untilDone reads until ctx ends: to find the next entry may mean to read for long.
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

// checkEntries looks for entries of a layer's tar that lead out of the image's
// root: by a way up, or through one of the layer's own symbolic links. A folder
// that was packed has neither, and those who unpack with care keep them in, so that
// no image needs them. Absolute names and absolute targets of hard links are the
// image's own to those, and some builders write them: they are let through.
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
			return fmt.Errorf("the entry %q leads out of the image: %w", h.Name, err)
		}
		delete(links, name) // it is written over
		switch h.Typeflag {
		case tar.TypeLink:
			if _, err := links.resolve(h.Linkname); err != nil {
				return fmt.Errorf("the hard link %q leads out of the image: %w", h.Name, err)
			}
		case tar.TypeSymlink:
			// By itself it is harmless: who follows it has the image as root.
			links[name] = h.Linkname
			if size += len(name) + len(h.Linkname); size > maxLinksSize {
				return errors.New("it has more symbolic links than can be looked at")
			}
		}
	}
	return ctx.Err()
}

// symlinks are the targets of a layer's symbolic links, by path from its root.
type symlinks map[string]string

// maxLinksSize bounds the names and targets of a layer's links, in bytes, as all are
// kept while it is looked at.
const maxLinksSize = 128 << 20

// maxLinks is how many links are followed on the way to a file, as by the kernel
// (path_resolution(7)).
const maxLinks = 40

// resolve is the path from the root that a name stands for. It is an error if the
// way to it leads out of the root, or a .. is in it.
func (s symlinks) resolve(name string) (string, error) {
	if slices.Contains(strings.Split(name, "/"), "..") {
		return "", errors.New("it has a .. in it")
	}
	at, rest, via := ".", strings.Split(path.Clean(name), "/"), ""
	for followed := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		next := path.Join(at, part)
		switch target, is := s[next]; {
		case part == ".." && at == ".":
			return "", fmt.Errorf("it goes through %q, a link to %q", via, s[via])
		case !is || len(rest) == 0:
			at = next
		case path.IsAbs(target):
			return "", fmt.Errorf("it goes through %q, a link to %q", next, target)
		case followed == maxLinks || len(target) >= unix.PathMax: // symlink(2) makes none so long
			return "", fmt.Errorf("it goes through %q, a link that nobody can follow", next)
		default:
			followed++
			via, rest = next, append(strings.Split(target, "/"), rest...)
		}
	}
	return at, nil
}

// blobs reads blobs from the folder that the daemon has them in, where it tells and
// this process sees it, so that reading costs the daemon nothing.
type blobs struct {
	ctrd *containerd.Client
	once sync.Once
	dir  string // empty: it does not tell
}

func (s *Store) blobs() content.Provider { return &blobs{ctrd: s.ctrd} }

// ReaderAt implements content.Provider.
func (b *blobs) ReaderAt(ctx context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, err
	}
	b.once.Do(func() { b.ask(ctx) })
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

func (b *blobs) ask(ctx context.Context) {
	got, err := b.ctrd.IntrospectionService().Plugins(ctx, "type==io.containerd.content.v1")
	if err != nil {
		return // the blobs can be asked for
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

// arriving has blobs that are still to come, until ended is closed: it waits for
// them.
type arriving struct {
	content.Provider
	ended chan struct{}
}

// How long a blob is waited for before it is looked for again. The daemon's own
// word of it may come 300 ms late.
const (
	firstLook = 2 * time.Millisecond
	lastLook  = 50 * time.Millisecond
)

// ReaderAt implements content.Provider.
func (a *arriving) ReaderAt(ctx context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	for wait := firstLook; ; wait = min(2*wait, lastLook) {
		over := false
		select {
		case <-a.ended:
			over = true
		default:
		}
		ra, err := a.Provider.ReaderAt(ctx, d)
		if over || !errdefs.IsNotFound(err) {
			return ra, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-a.ended:
		case <-time.After(wait):
		}
	}
}
