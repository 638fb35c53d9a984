package images

import (
	"context"
	"errors"
	"fmt"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	store "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bot-bottle/bottle/internal/imageowner"
)

// Push uploads an image, named by its normalised reference, to its registry and
// returns its digest there. If only some platforms of a multi-platform image are in
// the store, only this host's manifest is pushed. The error wraps ErrMissing or one
// of Pull's errors.
func (s *Store) Push(ctx context.Context, ref string, r Remote) (digest.Digest, error) {
	ctx = namespaces.WithNamespace(ctx, s.namespace)
	img, err := s.get(ctx, ref)
	if err != nil {
		return "", err
	}
	var sent digest.Digest
	err = s.leased(ctx, "push "+ref, func(ctx context.Context) error {
		target, err := s.pushable(ctx, img)
		if err != nil {
			return err
		}
		sent = target.Digest
		if target.Digest == img.Target().Digest {
			return s.push(ctx, ref, ref, r)
		}
		return s.pushManifest(ctx, ref, target, r)
	})
	if err != nil {
		return "", fmt.Errorf("push image %s: %w", ref, err)
	}
	return sent, nil
}

func (s *Store) push(ctx context.Context, ref, from string, r Remote) error {
	stored, err := imageowner.Stored(ctx, s.ctrd.ImageService(), from)
	if err != nil {
		return err
	}
	return s.transfer(ctx, ref, r, nil, func(reg *registry.OCIRegistry) (any, any) { return image.NewStore(stored), reg })
}

// pushable returns what can be pushed: the image's target if it is complete in the
// store, otherwise this host's manifest.
func (s *Store) pushable(ctx context.Context, img containerd.Image) (ocispec.Descriptor, error) {
	cs := s.ctrd.ContentStore()
	complete := true
	handler := store.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if _, err := cs.Info(ctx, d.Digest); err != nil {
			complete = false
			return nil, store.ErrStopHandler
		}
		return store.Children(ctx, cs, d)
	})
	if err := store.Walk(ctx, handler, img.Target()); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("read image content: %w", err)
	}
	if complete {
		return img.Target(), nil
	}
	d, _, err := s.manifest(ctx, img.Target())
	return d, err
}

// pushManifest pushes a manifest under a temporary name.
func (s *Store) pushManifest(ctx context.Context, ref string, target ocispec.Descriptor, r Remote) (err error) {
	name := fmt.Sprintf("bottle-push-%s-%d", target.Digest.Encoded(), time.Now().UnixNano())
	_, err = s.ctrd.ImageService().Create(ctx, store.Image{Name: name, Target: target})
	if err != nil {
		return fmt.Errorf("create temporary name for the %s manifest: %w", platforms.Format(platforms.DefaultSpec()), err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTime)
		defer cancel()
		if derr := s.ctrd.ImageService().Delete(ctx, name); derr != nil {
			err = errors.Join(err, fmt.Errorf("remove temporary name %s: %w", name, derr))
		}
	}()
	return s.push(ctx, ref, name, r)
}
