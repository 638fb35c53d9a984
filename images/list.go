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

// Listed is one name in the store.
type Listed struct {
	Ref    string
	Digest string // of the index or manifest that the name points to
	// Size is what this host's part of it takes in the content store, packed,
	// in bytes; layers that images share count in each.
	Size    int64
	Created time.Time // when the name came to point there
	// Base and Folder are what a derived image was made of.
	Base, Folder string
}

// List returns all names of the namespace, as containerd sorts them.
func (s *Store) List(ctx context.Context) ([]Listed, error) {
	ctx = namespaces.WithNamespace(ctx, s.namespace)
	found, err := s.ctrd.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	out := make([]Listed, 0, len(found))
	for _, img := range found {
		size, err := s.size(ctx, img)
		if err != nil {
			return nil, fmt.Errorf("list images: %s: %w", img.Name, err)
		}
		out = append(out, Listed{
			Ref: img.Name, Digest: img.Target.Digest.String(), Size: size, Created: img.UpdatedAt,
			Base: img.Labels[labelBase], Folder: img.Labels[labelFolder],
		})
	}
	return out, nil
}

// size adds up what the manifest for this host says; one that is not there, or
// is for another platform, has what the name itself points to.
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

// Remove takes a name away, and with it all content and snapshots that nothing
// else needs, before it returns. The error wraps ErrMissing when there is no
// such name.
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
