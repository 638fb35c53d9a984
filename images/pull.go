package images

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	store "github.com/containerd/containerd/v2/core/images"
	transferimage "github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bot-bottle/bottle/internal/imageowner"
)

// Pull fetches an image, named by its normalised reference, from its registry and
// unpacks it for this host's platform. Existing content is not fetched again. The
// error wraps one of the package's errors. After an error or cancellation the store
// is unchanged and no lease remains.
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
		return Image{}, fmt.Errorf("look up current image: %w", err)
	}
	checked, err := s.fetch(ctx, ref, r)
	var got Image
	if err == nil {
		got, err = s.finish(ctx, ref, checked)
	}
	if err != nil {
		return Image{}, errors.Join(err, s.restore(ctx, ref, before))
	}
	return got, nil
}

// checkedImage is a pulled image whose layers have been checked.
type checkedImage struct {
	image Image
	chain string // its snapshot's name
}

// fetch makes the daemon fetch, unpack and name an image, and checks its content as
// it arrives. A failure in the daemon cancels the check. A failed check does not
// cancel the daemon, which might set the name afterwards. The result is nil without
// an error if the daemon finished before it reported what the name resolves to.
func (s *Store) fetch(ctx context.Context, ref string, r Remote) (*checkedImage, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	target := make(chan ocispec.Descriptor, 1)
	fetched := make(chan struct{}) // closed when the daemon is finished
	var image *checkedImage
	checked := make(chan error, 1)
	go func() {
		var err error
		select {
		case d := <-target:
			image, err = s.checkPulled(ctx, ref, d, fetched)
		case <-fetched:
		}
		checked <- err
	}()
	host := platforms.DefaultSpec()
	to := transferimage.NewStore(imageowner.OwnName(s.ctrd.ImageService(), ref), transferimage.WithPlatforms(host), transferimage.WithUnpack(host, s.snapshotter))
	err := s.transfer(ctx, ref, r, func(d ocispec.Descriptor) { target <- d },
		func(reg *registry.OCIRegistry) (any, any) { return reg, to })
	close(fetched)
	if err != nil {
		cancel()
	}
	err = cmp.Or(err, <-checked)
	return image, err
}

// checkPulled checks an image that the daemon is fetching, until fetched is closed.
func (s *Store) checkPulled(ctx context.Context, ref string, target ocispec.Descriptor, fetched chan struct{}) (*checkedImage, error) {
	incoming := &incomingBlobs{s.blobs(), fetched}
	d, m, err := manifestOf(ctx, incoming, target)
	if err != nil {
		return nil, err
	}
	var config ocispec.Image
	if err := readJSON(ctx, incoming, m.Config, &config); err != nil {
		return nil, fmt.Errorf("read image configuration: %w", err)
	}
	if err := checkPlatform(config.Platform); err != nil {
		return nil, err
	}
	err = s.checkLayers(ctx, incoming, d, m.Layers, false, 1) // leave the CPUs to the daemon
	if errors.Is(err, ErrLayer) {
		return nil, errors.Join(err, s.dropUnpacked(ctx, m.Config.Digest, fetched))
	}
	return &checkedImage{imageOf(ref, target, config), identity.ChainID(config.RootFS.DiffIDs).String()}, err
}

// dropUnpacked makes the daemon, once it is finished, release the image's unpacked
// snapshot. The configuration blob refers to it, and another image may keep that
// blob.
func (s *Store) dropUnpacked(ctx context.Context, config digest.Digest, fetched chan struct{}) error {
	select {
	case <-fetched:
	case <-ctx.Done():
		return nil
	}
	err := label(ctx, s.ctrd.ContentStore(), config, labelSnapshot+s.snapshotter, "")
	if errdefs.IsNotFound(err) {
		return nil // the configuration was not fetched
	}
	return err
}

// finish verifies the result of a pull: the daemon also stores an index without this
// host's platform, and it does not unpack for every snapshotter.
func (s *Store) finish(ctx context.Context, ref string, checked *checkedImage) (Image, error) {
	if checked != nil {
		if _, err := s.ctrd.SnapshotService(s.snapshotter).Stat(ctx, checked.chain); err == nil {
			return checked.image, nil
		}
	}
	got, err := s.Lookup(ctx, ref)
	if err != nil {
		return Image{}, err
	}
	return got, s.Unpack(ctx, ref)
}

// restore resets a name to its previous target, or deletes it if it had none.
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
		return fmt.Errorf("restore the previous image %s: %w", ref, err)
	}
	return nil
}
