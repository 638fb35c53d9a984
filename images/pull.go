package images

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	store "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
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
	seen, err := s.fetch(ctx, ref, r)
	var got Image
	if err == nil {
		got, err = s.ready(ctx, ref, seen)
	}
	if err != nil {
		return Image{}, errors.Join(err, s.restore(ctx, ref, before))
	}
	return got, nil
}

// pulled is an image whose layers have been looked at.
type pulled struct {
	image Image
	chain string // name of its snapshot
}

// fetch has the daemon fetch, unpack and name an image, and looks at it as it comes.
// A failure of the daemon's ends the looking; the daemon is not ended by what is
// seen, as it might give the name all the same, later. Nil without an error: the
// daemon had ended before it was heard.
func (s *Store) fetch(ctx context.Context, ref string, r Remote) (*pulled, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	target := make(chan ocispec.Descriptor, 1)
	ended := make(chan struct{})
	var seen *pulled
	looked := make(chan error, 1)
	go func() {
		var err error
		select {
		case d := <-target:
			seen, err = s.look(ctx, ref, d, ended)
		case <-ended:
		}
		looked <- err
	}()
	host := platforms.DefaultSpec()
	to := image.NewStore(ref, image.WithPlatforms(host), image.WithUnpack(host, s.snapshotter))
	err := s.transfer(ctx, ref, r, func(d ocispec.Descriptor) { target <- d },
		func(reg *registry.OCIRegistry) (any, any) { return reg, to })
	close(ended)
	if err != nil {
		cancel()
	}
	err = cmp.Or(err, <-looked)
	return seen, err
}

// look looks at what the daemon fetches, until ended is closed.
func (s *Store) look(ctx context.Context, ref string, target ocispec.Descriptor, ended chan struct{}) (*pulled, error) {
	coming := &arriving{s.blobs(), ended}
	d, m, err := manifestOf(ctx, coming, target)
	if err != nil {
		return nil, err
	}
	var config ocispec.Image
	if err := readJSON(ctx, coming, m.Config, &config); err != nil {
		return nil, fmt.Errorf("read its configuration: %w", err)
	}
	if err := checkPlatform(config.Platform); err != nil {
		return nil, err
	}
	err = s.checkLayers(ctx, coming, d, m.Layers, false, 1) // the daemon has much to do
	if errors.Is(err, ErrLayer) {
		return nil, errors.Join(err, s.dropUnpacked(ctx, m.Config.Digest, ended))
	}
	return &pulled{imageOf(ref, target, config), identity.ChainID(config.RootFS.DiffIDs).String()}, err
}

// dropUnpacked has the daemon, once it has ended, not keep what it has unpacked of
// an image: it does so as long as there is the configuration, which another image
// may have too.
func (s *Store) dropUnpacked(ctx context.Context, config digest.Digest, ended chan struct{}) error {
	select {
	case <-ended:
	case <-ctx.Done():
		return nil
	}
	err := s.label(ctx, config, labelSnapshot+s.snapshotter, "")
	if errdefs.IsNotFound(err) {
		return nil // it did not come so far
	}
	return err
}

// ready makes sure of what was pulled: an index without this platform is stored all
// the same, and a snapshotter that the daemon does not unpack for itself has been
// left out.
func (s *Store) ready(ctx context.Context, ref string, seen *pulled) (Image, error) {
	if seen != nil {
		if _, err := s.ctrd.SnapshotService(s.snapshotter).Stat(ctx, seen.chain); err == nil {
			return seen.image, nil
		}
	}
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
	now, err := s.ctrd.ImageService().Get(ctx, ref)
	if errdefs.IsNotFound(err) || err == nil && now.Target.Digest == before.Target.Digest {
		return nil
	}
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
