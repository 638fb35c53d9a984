// Package imageowner gives each user of sudo their own names of images in containerd's
// store. What a user builds, pulls or derives from a directory is stored under a name
// that only this user can write and that other users do not see, so that nobody can
// replace the image that another user runs, or run an image with another user's files.
// Names that root has created are seen by everybody, below a user's own.
package imageowner

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	"github.com/bot-bottle/bottle/internal/lazyregexp"
)

// stored matches names of users' images in the store.
var stored = lazyregexp.New(`^bottle\.u[0-9]+/`)

// Store is an image store as a user sees it. For root it is the store itself.
type Store struct {
	images.Store
	// UID is the user's; 0: root.
	UID int
	// MayRemoveShared reports whether the user may remove names that root has created.
	MayRemoveShared func() bool
}

// New connects to containerd with a user's image store and other services. These must not be
// among the options: of two options with services, containerd's client uses the last only.
func New(address string, uid int, mayRemoveShared func() bool, services []containerd.ServicesOpt, opts ...containerd.Opt) (*containerd.Client, error) {
	s := &Store{UID: uid, MayRemoveShared: mayRemoveShared}
	if uid != 0 {
		services = append(services, containerd.WithImageStore(s))
	}
	c, err := containerd.New(address, append(opts, containerd.WithServices(services...))...)
	if err != nil {
		return nil, err
	}
	conn, err := Conn(c)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	s.Store = containerd.NewImageStoreFromClient(imagesapi.NewImagesClient(conn))
	return c, nil
}

// Conn returns the connection of a client.
func Conn(c *containerd.Client) (grpc.ClientConnInterface, error) {
	conn, ok := c.Conn().(grpc.ClientConnInterface)
	if !ok {
		return nil, errors.New("connect to containerd: unexpected kind of connection")
	}
	return conn, nil
}

// Name returns the name under which a user's image is stored.
func Name(name string, uid int) string {
	if uid == 0 {
		return name
	}
	return prefix(uid) + name
}

func prefix(uid int) string { return "bottle.u" + strconv.Itoa(uid) + "/" }

// Stored returns the name under which the image that a user sees is stored, in the image
// store of a connection of New.
func Stored(ctx context.Context, store images.Store, name string) (string, error) {
	s, ok := store.(*Store)
	if !ok {
		return name, nil
	}
	_, at, err := s.find(ctx, name)
	return at, err
}

// OwnName returns the name under which the user of a store stores an image.
func OwnName(store images.Store, name string) string {
	if s, ok := store.(*Store); ok {
		return Name(name, s.UID)
	}
	return name
}

// find returns the image that the user sees under a name, with that name, and the name
// under which it is stored.
func (s *Store) find(ctx context.Context, name string) (images.Image, string, error) {
	own := Name(name, s.UID)
	img, err := s.Store.Get(ctx, own)
	if err == nil {
		img.Name = name
		return img, own, nil
	}
	if !errdefs.IsNotFound(err) {
		return images.Image{}, "", err
	}
	if stored().MatchString(name) {
		return images.Image{}, "", fmt.Errorf("image %q: %w", name, errdefs.ErrNotFound)
	}
	img, err = s.Store.Get(ctx, name)
	return img, name, err
}

// Get implements images.Store.
func (s *Store) Get(ctx context.Context, name string) (images.Image, error) {
	img, _, err := s.find(ctx, name)
	return img, err
}

// List implements images.Store. Filters apply to the names in the store.
func (s *Store) List(ctx context.Context, filters ...string) ([]images.Image, error) {
	all, err := s.Store.List(ctx, filters...)
	if err != nil {
		return nil, err
	}
	var own, shared []images.Image
	names := map[string]bool{}
	for _, img := range all {
		if name, mine := strings.CutPrefix(img.Name, prefix(s.UID)); mine {
			img.Name = name
			own, names[name] = append(own, img), true
		} else if !stored().MatchString(img.Name) {
			shared = append(shared, img)
		}
	}
	for _, img := range shared {
		if !names[img.Name] {
			own = append(own, img)
		}
	}
	return own, nil
}

// Create implements images.Store.
func (s *Store) Create(ctx context.Context, img images.Image) (images.Image, error) {
	return s.change(img, func(img images.Image) (images.Image, error) { return s.Store.Create(ctx, img) })
}

// Update implements images.Store. It changes only names of the user.
func (s *Store) Update(ctx context.Context, img images.Image, fieldpaths ...string) (images.Image, error) {
	return s.change(img, func(img images.Image) (images.Image, error) { return s.Store.Update(ctx, img, fieldpaths...) })
}

func (s *Store) change(img images.Image, fn func(images.Image) (images.Image, error)) (images.Image, error) {
	name := img.Name
	img.Name = Name(name, s.UID)
	out, err := fn(img)
	if err == nil {
		out.Name = name
	}
	return out, err
}

// Delete implements images.Store.
func (s *Store) Delete(ctx context.Context, name string, opts ...images.DeleteOpt) error {
	_, at, err := s.find(ctx, name)
	if err != nil {
		return err
	}
	if at == name && !s.MayRemoveShared() {
		return fmt.Errorf("image %s is shared by all users, and only root removes it: %w", name, errdefs.ErrPermissionDenied)
	}
	return s.Store.Delete(ctx, at, opts...)
}
