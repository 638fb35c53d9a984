package images

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	store "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// createImage writes configuration and manifest and sets the image's name. An image
// that had the name before is collected.
func (l *layering) createImage(ctx context.Context) error {
	now := time.Now().UTC()
	base := l.manifest
	base.Layers = slices.Clone(base.Layers)
	for i := range base.Layers {
		base.Layers[i].MediaType = ociType(base.Layers[i].MediaType)
	}
	l.config.RootFS.DiffIDs = append(slices.Clone(l.config.RootFS.DiffIDs), l.diffID)
	l.config.History = append(slices.Clone(l.config.History), ocispec.History{Created: &now, CreatedBy: "bottle run --cwd", Comment: l.d.Dir})
	l.config.Config.WorkingDir, l.config.Created = l.d.Target, &now
	config, err := l.put(ctx, ocispec.MediaTypeImageConfig, l.config, map[string]string{
		labelSnapshot + l.store.snapshotter: identity.ChainID(l.config.RootFS.DiffIDs).String(),
	})
	if err != nil {
		return err
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config, Layers: append(base.Layers, l.layer), Annotations: base.Annotations,
	}
	refs := map[string]string{"containerd.io/gc.ref.content.config": config.Digest.String(), labelChecked: checkedAll}
	for i, layer := range m.Layers {
		refs[fmt.Sprintf("containerd.io/gc.ref.content.l.%d", i)] = layer.Digest.String()
	}
	manifest, err := l.put(ctx, ocispec.MediaTypeImageManifest, m, refs)
	if err != nil {
		return err
	}
	return l.store.setImage(ctx, store.Image{Name: l.d.Ref, Target: manifest, Labels: l.labels()})
}

func (l *layering) labels() map[string]string {
	labels := map[string]string{labelFingerprint: l.fingerprint, labelBase: l.d.Base, labelDir: l.d.Dir}
	// A label's key and value may total 4096 bytes (containerd, pkg/labels).
	maps.DeleteFunc(labels, func(k, v string) bool { return v == "" || len(k)+len(v) > 4096 })
	return labels
}

// ociType returns the OCI equivalent of a Docker layer media type.
func ociType(t string) string {
	switch t {
	case store.MediaTypeDockerSchema2Layer:
		return ocispec.MediaTypeImageLayer
	case store.MediaTypeDockerSchema2LayerGzip:
		return ocispec.MediaTypeImageLayerGzip
	case store.MediaTypeDockerSchema2LayerZstd:
		return ocispec.MediaTypeImageLayerZstd
	}
	return t
}

// put stores a JSON document.
func (l *layering) put(ctx context.Context, mediaType string, v any, labels map[string]string) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("encode %s: %w", mediaType, err)
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	err = content.WriteBlob(ctx, l.store.ctrd.ContentStore(), "bottle-derive-"+d.Digest.String(), bytes.NewReader(data), d, content.WithLabels(labels))
	if err != nil {
		return d, fmt.Errorf("store %s: %w", mediaType, err)
	}
	return d, nil
}

// setImage creates or replaces an image name.
func (s *Store) setImage(ctx context.Context, img store.Image) error {
	is := s.ctrd.ImageService()
	_, err := is.Create(ctx, img)
	if errdefs.IsAlreadyExists(err) {
		if _, err = is.Update(ctx, img, "target", "labels"); err == nil {
			err = s.collect(ctx)
		}
	}
	if err != nil {
		return fmt.Errorf("set image name %s: %w", img.Name, err)
	}
	return nil
}

// collectTime is how long a launch waits for the previous image to be collected.
// Thousands of files may take seconds; containerd continues in the background.
const collectTime = 200 * time.Millisecond

// collect makes containerd remove unreferenced objects, by deleting a lease
// synchronously.
func (s *Store) collect(ctx context.Context) error {
	_, release, err := s.lease(ctx, "collect")
	if err != nil {
		return err
	}
	return releaseSoon(release, collectTime)
}
