package images

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// labelSnapshot, with a snapshotter's name, has containerd keep a snapshot as long
// as the blob that bears it (containerd's docs/garbage-collection.md).
const labelSnapshot = "containerd.io/gc.ref.snapshot."

// unpack makes the layers of this host's part of an image into snapshots, read from
// cs; those that are there already stay. The error wraps ErrPlatform, ErrLayer or ErrNoSpace.
func (s *Store) unpack(ctx context.Context, cs content.Provider, target ocispec.Descriptor) error {
	_, m, err := manifestOf(ctx, cs, target)
	if err != nil {
		return err
	}
	var config ocispec.Image
	if err := readJSON(ctx, cs, m.Config, &config); err != nil {
		return fmt.Errorf("read its configuration: %w", err)
	}
	if err := checkPlatform(config.Platform); err != nil {
		return err
	}
	ctx = log.WithLogger(ctx, silent)
	diffs := config.RootFS.DiffIDs
	if len(diffs) != len(m.Layers) {
		return fmt.Errorf("%w: its configuration names %d layers, its manifest %d", ErrLayer, len(diffs), len(m.Layers))
	}
	for i, layer := range m.Layers {
		if err := s.unpackOnto(ctx, cs, diffs[:i:i], diffs[i], layer); err != nil {
			return err
		}
	}
	key := labelSnapshot + s.snapshotter
	return s.label(ctx, m.Config.Digest, key, identity.ChainID(diffs).String())
}

// unpackOnto makes a layer into a snapshot over those below it.
func (s *Store) unpackOnto(ctx context.Context, cs content.Provider, below []digest.Digest, diffID digest.Digest, layer ocispec.Descriptor) error {
	made, err := rootfs.ApplyLayerWithOpts(ctx, rootfs.Layer{
		Diff: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: diffID}, Blob: layer,
	}, below, s.ctrd.SnapshotService(s.snapshotter), NewApplier(cs), nil, nil)
	var bad *layerError
	switch {
	case errors.As(err, &bad):
		return bad
	case err != nil:
		return fmt.Errorf("unpack layer %s: %w", layer.Digest, err)
	case !made:
		return nil
	}
	return s.label(ctx, layer.Digest, labels.LabelUncompressed, diffID.String())
}

func (s *Store) label(ctx context.Context, blob digest.Digest, key, value string) error {
	_, err := s.ctrd.ContentStore().Update(ctx, content.Info{Digest: blob, Labels: map[string]string{key: value}}, "labels."+key)
	if err != nil {
		return fmt.Errorf("label %s: %w", blob, err)
	}
	return nil
}
