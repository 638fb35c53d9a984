package images

import (
	"context"
	"errors"
	"fmt"

	store "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
)

// Pull brings an image, named by its normalised reference, from its registry
// and unpacks it for this host's platform. What is there already is not fetched
// again. The error wraps one of the package's; after an error, and when ctx
// ends, the store holds what it held before and no lease is left.
func (s *Store) Pull(ctx context.Context, ref string, r Remote) (Image, error) {
	ctx = namespaces.WithNamespace(ctx, s.namespace)
	var got Image
	err := s.leased(ctx, "pull "+ref, func(ctx context.Context) (err error) {
		got, err = s.pull(ctx, ref, r)
		return err
	})
	if err != nil {
		return Image{}, fmt.Errorf("pull image %s: %w", ref, err)
	}
	return got, nil
}

func (s *Store) pull(ctx context.Context, ref string, r Remote) (Image, error) {
	before, err := s.ctrd.ImageService().Get(ctx, ref)
	if err != nil && !errdefs.IsNotFound(err) {
		return Image{}, fmt.Errorf("look it up: %w", err)
	}
	host := platforms.DefaultSpec()
	to := image.NewStore(ref, image.WithPlatforms(host), image.WithUnpack(host, s.snapshotter))
	err = s.transfer(ctx, ref, r, func(reg *registry.OCIRegistry) (any, any) { return reg, to })
	if err != nil {
		return Image{}, err
	}
	got, err := s.ready(ctx, ref)
	if err != nil {
		return Image{}, errors.Join(err, s.restore(ctx, ref, before))
	}
	return got, nil
}

// ready looks at what was pulled: an index without this platform is stored all
// the same, and a snapshotter that the daemon does not unpack for itself has
// been left out.
func (s *Store) ready(ctx context.Context, ref string) (Image, error) {
	got, err := s.Lookup(ctx, ref)
	if err != nil {
		return Image{}, err
	}
	return got, s.Unpack(ctx, ref)
}

// restore gives a name the image that it had, or none.
func (s *Store) restore(ctx context.Context, ref string, before store.Image) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTime)
	defer cancel()
	var err error
	if before.Name == "" {
		err = s.ctrd.ImageService().Delete(ctx, ref)
	} else {
		_, err = s.ctrd.ImageService().Update(ctx, before, "target")
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("put back the image that %s was: %w", ref, err)
	}
	return nil
}
