package buildkit

import (
	"context"
	"errors"
	"fmt"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
)

// targets returns the images that have the names now.
func targets(ctx context.Context, store *containerd.Client, names []string) (map[string]images.Image, error) {
	out := map[string]images.Image{}
	for _, name := range names {
		img, err := store.ImageService().Get(ctx, name)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look up image %s: %w", name, err)
		}
		out[name] = img
	}
	return out, nil
}

// unpack validates and unpacks built images. If one is invalid, all names are set to
// the images they had before, or removed.
func (c Config) unpack(ctx context.Context, store *containerd.Client, names []string, before map[string]images.Image) error {
	var err error
	for _, name := range names {
		err = errors.Join(err, c.Unpack(ctx, store, name))
	}
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
	defer cancel()
	for _, name := range names {
		if img, ok := before[name]; ok {
			_, rerr := store.ImageService().Update(ctx, img, "target")
			err = errors.Join(err, rerr)
			continue
		}
		err = errors.Join(err, store.ImageService().Delete(ctx, name, images.SynchronousDelete()))
	}
	return fmt.Errorf("unpack built image: %w", err)
}
