package images

import (
	"context"
	"errors"
	"fmt"
	"time"

	store "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
)

// ListEntry is one name in the store.
type ListEntry struct {
	Ref    string
	Digest string // of the index or manifest the name points to
	// Size is the compressed size of this host's manifest, configuration and layers
	// in the content store, in bytes. Shared layers count in each image.
	Size    int64
	Created time.Time // when the name was last set
	// Base and Dir are the base and the directory of a derived image.
	Base, Dir string
}

// List returns all names of the namespace in containerd's order.
func (s *Store) List(ctx context.Context) ([]ListEntry, error) {
	ctx = namespaces.WithNamespace(ctx, s.namespace)
	found, err := s.ctrd.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	out := make([]ListEntry, 0, len(found))
	for _, img := range found {
		size, err := s.size(ctx, img)
		if err != nil {
			return nil, fmt.Errorf("list images: %s: %w", img.Name, err)
		}
		out = append(out, ListEntry{
			Ref: img.Name, Digest: img.Target.Digest.String(), Size: size, Created: img.UpdatedAt,
			Base: img.Labels[labelBase], Dir: img.Labels[labelDir],
		})
	}
	return out, nil
}

// size adds up the sizes in this host's manifest. If that is missing, it is the size
// of what the name points to.
func (s *Store) size(ctx context.Context, img store.Image) (int64, error) {
	d, m, err := s.manifest(ctx, img.Target)
	if errors.Is(err, ErrPlatform) || errors.Is(err, ErrIncomplete) {
		return img.Target.Size, nil
	}
	if err != nil {
		return 0, err
	}
	size := d.Size + m.Config.Size
	for _, l := range m.Layers {
		size += l.Size
	}
	return size, nil
}

// Remove deletes a name, and before returning, all content and snapshots that are no
// longer referenced. The error wraps ErrMissing when there is no such name.
func (s *Store) Remove(ctx context.Context, ref string) error {
	ctx = namespaces.WithNamespace(ctx, s.namespace)
	err := s.ctrd.ImageService().Delete(ctx, ref, store.SynchronousDelete())
	if errdefs.IsNotFound(err) {
		err = ErrMissing
	}
	if err != nil {
		return fmt.Errorf("remove image %s: %w", ref, err)
	}
	return nil
}
