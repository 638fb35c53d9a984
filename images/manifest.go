package images

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	store "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// manifest returns this host's manifest: the matching one if target is an index, or
// target itself. The error wraps ErrPlatform when there is no manifest for this
// host, and ErrIncomplete when it is not in the store.
func (s *Store) manifest(ctx context.Context, target ocispec.Descriptor) (ocispec.Descriptor, ocispec.Manifest, error) {
	return manifestOf(ctx, s.ctrd.ContentStore(), target)
}

func manifestOf(ctx context.Context, cs content.Provider, target ocispec.Descriptor) (ocispec.Descriptor, ocispec.Manifest, error) {
	var found ocispec.Descriptor
	var unread error
	// containerd's images.Manifest does not return the selected descriptor.
	handler := store.LimitManifests(store.FilterPlatforms(store.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if store.IsManifestType(d.MediaType) {
			found = d
			return nil, nil
		}
		children, err := store.Children(ctx, cs, d)
		unread = cmp.Or(unread, err)
		return children, err
	}), platforms.Default()), platforms.Default(), 1)
	// Walk also returns "not found" if no manifest matches.
	if err := store.Walk(ctx, handler, target); err != nil && (unread != nil || !errdefs.IsNotFound(err)) {
		if errdefs.IsNotFound(unread) {
			err = fmt.Errorf("%w: %w", ErrIncomplete, unread)
		}
		return found, ocispec.Manifest{}, fmt.Errorf("read image index: %w", err)
	}
	if found.Digest == "" {
		return found, ocispec.Manifest{}, fmt.Errorf("%w (this host is %s)", ErrPlatform, hostPlatform())
	}
	var m ocispec.Manifest
	if err := readJSON(ctx, cs, found, &m); err != nil {
		return found, m, fmt.Errorf("read image manifest: %w", err)
	}
	return found, m, nil
}

func readJSON(ctx context.Context, cs content.Provider, d ocispec.Descriptor, v any) error {
	data, err := content.ReadBlob(ctx, cs, d)
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("%w: %s", ErrIncomplete, d.Digest)
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}
