// Package images manages images in containerd's store: lookup, pull, push,
// unpacking, and images derived from a working directory. It is the only package
// that deals with references, platforms and unpacking. It never starts a
// container.
package images

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Errors of Lookup and Unpack.
var (
	ErrMissing    = errors.New("image not found in containerd's store")
	ErrIncomplete = errors.New("incomplete image: part of it is missing from containerd's store")
	ErrPlatform   = errors.New("image is for another platform")
)

// Store is containerd's image store, limited to one namespace.
type Store struct {
	ctrd        *containerd.Client
	namespace   string
	snapshotter string
}

// Image is what a caller needs to know about an image before running it.
type Image struct {
	Ref      string // normalised
	Digest   string // of the index or manifest the name points to
	Platform string // "linux/amd64"
	Config   ocispec.ImageConfig
}

// New returns a Store that uses the given connection; the caller closes it. An
// empty snapshotter means overlayfs.
func New(ctrd *containerd.Client, namespace, snapshotter string) *Store {
	if snapshotter == "" {
		snapshotter = "overlayfs"
	}
	return &Store{ctrd: ctrd, namespace: namespace, snapshotter: snapshotter}
}

// Lookup finds an image by its normalised reference, without side effects. The
// error wraps ErrMissing, ErrIncomplete or ErrPlatform.
func (s *Store) Lookup(ctx context.Context, ref string) (Image, error) {
	ctx = namespaces.WithNamespace(ctx, s.namespace)
	img, err := s.get(ctx, ref)
	if err != nil {
		return Image{}, err
	}
	spec, err := img.Spec(ctx)
	if errdefs.IsNotFound(err) { // part of the image, or a manifest for this host
		if _, _, merr := s.manifest(ctx, img.Target()); merr != nil {
			return Image{}, fmt.Errorf("look up image %s: %w", ref, merr)
		}
		return Image{}, fmt.Errorf("look up image %s: %w: %w", ref, ErrIncomplete, err)
	}
	if err != nil {
		return Image{}, fmt.Errorf("read configuration of %s: %w", ref, err)
	}
	if err := checkPlatform(spec.Platform); err != nil {
		return Image{}, fmt.Errorf("look up image %s: %w", ref, err)
	}
	return imageOf(img.Name(), img.Target(), spec), nil
}

func imageOf(ref string, target ocispec.Descriptor, spec ocispec.Image) Image {
	return Image{Ref: ref, Digest: target.Digest.String(), Platform: platforms.Format(spec.Platform), Config: spec.Config}
}

func (s *Store) get(ctx context.Context, ref string) (containerd.Image, error) {
	img, err := s.ctrd.GetImage(ctx, ref)
	if errdefs.IsNotFound(err) {
		err = ErrMissing
	}
	if err != nil {
		return nil, fmt.Errorf("look up image %s: %w", ref, err)
	}
	return img, nil
}

// checkPlatform checks the platform in an image's configuration: a name may point
// directly to a manifest, in which case nothing has selected by platform.
func checkPlatform(p ocispec.Platform) error {
	if p.Architecture == "" || platforms.Default().Match(p) {
		return nil
	}
	return fmt.Errorf("%w: %s, this host is %s", ErrPlatform, platforms.Format(p), hostPlatform())
}

func hostPlatform() string { return platforms.Format(platforms.DefaultSpec()) }

// labelSnapshot, followed by a snapshotter's name, makes containerd keep a snapshot
// as long as the labelled blob (containerd's docs/garbage-collection.md).
const labelSnapshot = "containerd.io/gc.ref.snapshot."

// Unpack ensures that the image's layers are in the snapshotter and that no layer
// entry escapes the image's root. If both are already known, it costs a few
// lookups. The error wraps ErrMissing, ErrIncomplete, ErrPlatform, ErrLayer or
// ErrNoSpace.
func (s *Store) Unpack(ctx context.Context, ref string) error {
	ctx = namespaces.WithNamespace(ctx, s.namespace)
	img, err := s.get(ctx, ref)
	if err != nil {
		return err
	}
	if err := s.unpack(ctx, img); err != nil {
		return fmt.Errorf("unpack image %s: %w", ref, err)
	}
	return nil
}

// Unpacker returns a function that calls Unpack on a given connection.
func Unpacker(namespace, snapshotter string) func(ctx context.Context, ctrd *containerd.Client, ref string) error {
	return func(ctx context.Context, ctrd *containerd.Client, ref string) error {
		return New(ctrd, namespace, snapshotter).Unpack(ctx, ref)
	}
}

func (s *Store) unpack(ctx context.Context, img containerd.Image) error {
	d, m, err := s.manifest(ctx, img.Target())
	if err != nil {
		return err
	}
	var config ocispec.Image
	if err := readJSON(ctx, s.ctrd.ContentStore(), m.Config, &config); err != nil {
		return fmt.Errorf("read image configuration: %w", err)
	}
	chain := identity.ChainID(config.RootFS.DiffIDs).String()
	_, err = s.ctrd.SnapshotService(s.snapshotter).Stat(ctx, chain)
	unpacked := err == nil
	if err := s.checkLayers(ctx, s.blobs(), d, m.Layers, unpacked, runtime.GOMAXPROCS(0)); err != nil {
		return err
	}
	if unpacked {
		return nil
	}
	err = img.Unpack(log.WithLogger(ctx, silent), s.snapshotter)
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("%w: %w", ErrIncomplete, shortened(err))
	}
	if kind := kindOf(err); errors.Is(kind, ErrNoSpace) || errors.Is(kind, ErrLayer) {
		return fmt.Errorf("%w: %w", kind, shortened(err))
	}
	return err
}
