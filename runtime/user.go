package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
)

// ImageUser finds the user that an image's commands run as, by the files of the
// image, which must be unpacked. The error wraps ErrNoUser. Nothing is left.
func (c *Client) ImageUser(ctx context.Context, image string) (u User, err error) {
	ctx, cancel := whole(c.in(ctx))
	defer cancel()
	key := fmt.Sprintf("bottle-look-%d", time.Now().UnixNano())
	r, parent, err := c.imageRootFS(ctx, key, image)
	if err != nil {
		return User{}, err
	}
	ctx, done, err := c.ctrd.WithLease(ctx, leases.WithRandomID(), leases.WithExpiration(createTimeout),
		leases.WithLabels(map[string]string{"bottle.owner": "bottle", "bottle.purpose": "look into " + image}))
	if err != nil {
		return User{}, fmt.Errorf("make a lease: %w", err)
	}
	defer func() { err = errors.Join(err, done(ctx)) }()
	sn := c.ctrd.SnapshotService(c.cfg.Snapshotter)
	mounts, err := sn.View(ctx, key, parent)
	if err != nil {
		return User{}, fmt.Errorf("look into image %s: %w", image, err)
	}
	defer func() {
		if rerr := sn.Remove(ctx, key); rerr != nil && !errdefs.IsNotFound(rerr) {
			err = errors.Join(err, rerr)
		}
	}()
	err = within(ctx, mount.WithReadonlyTempMount, mounts, func(dir string) (err error) {
		root, err := os.OpenRoot(dir)
		if err != nil {
			return err
		}
		defer func() { _ = root.Close() }()
		u, err = lookUser(root, r.conf.User)
		return err
	})
	if err != nil {
		return User{}, fmt.Errorf("user %q of image %s: %w", r.conf.User, image, err)
	}
	return u, nil
}
