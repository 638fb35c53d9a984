package images

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	store "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// applier unpacks layers in this process, by containerd's own pkg/archive. The
// daemon's has no say about what it unpacks; here a layer that reaches out of the
// image is refused. Decompressing, hashing, looking and writing go side by side.
type applier struct{ content content.Provider }

// NewApplier unpacks layers that it reads from cs: tar (PAX, GNU), plain or
// compressed by gzip or zstd, onto mounts as a snapshotter gives them. The error
// wraps ErrLayer, also for a layer with an entry that leads out of the image's
// root, or ErrNoSpace.
func NewApplier(cs content.Provider) diff.Applier { return applier{cs} }

// readSize is how much of a layer is asked for at once, in bytes: each time is a
// call to the daemon.
const readSize = 1 << 20

// Apply implements diff.Applier. It returns size and digest of the layer's tar. No
// option has a meaning here.
func (a applier) Apply(ctx context.Context, d ocispec.Descriptor, mounts []mount.Mount, _ ...diff.ApplyOpt) (out ocispec.Descriptor, err error) {
	ra, err := a.content.ReaderAt(ctx, d)
	if err != nil {
		return out, fmt.Errorf("read layer %s: %w", d.Digest, err)
	}
	root, lower, err := writable(mounts)
	if err != nil {
		return out, errors.Join(err, ra.Close())
	}
	defer func() { err = errors.Join(err, root.Close(), ra.Close()) }()
	var how []archive.ApplyOpt
	if lower != nil {
		// Whiteouts are put as an overlay has them
		// (Documentation/filesystems/overlayfs.rst).
		how = append(how, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout), archive.WithParents(lower))
	}
	out, err = unpackLayer(ctx, d, bufio.NewReaderSize(content.NewReader(ra), readSize), root.Name(), how)
	if err == nil || ctx.Err() != nil {
		return out, err
	}
	return out, newLayerError(d.Digest, root.Name(), err)
}

func unpackLayer(ctx context.Context, d ocispec.Descriptor, packed io.Reader, root string, how []archive.ApplyOpt) (ocispec.Descriptor, error) {
	plain, err := decompressed(ctx, d.MediaType, packed)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer func() { _ = plain.Close() }()
	out := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer}
	sum := digest.Canonical.Digester()
	f := newFanout(ctx)
	f.to(func(_ context.Context, r io.Reader) (err error) {
		out.Size, err = io.Copy(sum.Hash(), r)
		return err
	})
	f.to(checkEntries)
	var failed error // told only if nothing was seen that explains it
	f.to(func(ctx context.Context, r io.Reader) error {
		_, failed = archive.Apply(ctx, root, r, how...)
		return nil
	})
	err = f.run(func(context.Context) error { return f.readFrom(plain) })
	if err = cmp.Or(err, failed); err != nil {
		return ocispec.Descriptor{}, err
	}
	out.Digest = sum.Digest()
	return out, nil
}

// decompressed is a layer's tar. Its media type says whether it may be compressed,
// its first bytes how.
func decompressed(ctx context.Context, mediaType string, packed io.Reader) (io.ReadCloser, error) {
	kind, err := store.DiffCompression(ctx, mediaType)
	switch {
	case err != nil:
		return nil, fmt.Errorf("it is of a kind that bottle does not know: %s", mediaType)
	case kind == "":
		return plainLayer{packed}, nil
	}
	return compression.DecompressStream(packed)
}

type plainLayer struct{ io.Reader }

func (plainLayer) Close() error { return nil }

// layerError tells of a layer that could not be unpacked.
type layerError struct {
	kind  error // ErrLayer or ErrNoSpace
	layer digest.Digest
	root  string // where it was being written to: nobody's concern
	err   error
}

func newLayerError(layer digest.Digest, root string, err error) error {
	e := &layerError{ErrLayer, layer, root, err}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		e.kind = ErrNoSpace
		// The daemon needs some space to remove the snapshot.
		names, _ := filepath.Glob(root + "/*")
		hidden, _ := filepath.Glob(root + "/.[!.]*")
		for _, name := range append(names, hidden...) {
			_ = os.RemoveAll(name) // else it goes with the snapshot
		}
	}
	return e
}

func (e *layerError) Error() string {
	text := strings.ReplaceAll(e.err.Error(), e.root, "")
	return fmt.Sprintf("%v: layer %s: %s", e.kind, e.layer, cut(text))
}

func (e *layerError) Unwrap() []error { return []error{e.kind, e.err} }
