package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
)

// ImageUser resolves the user of an unpacked image by its passwd and group files.
// The error wraps ErrNoUser if there is no such user. Nothing is left behind.
func (c *Client) ImageUser(ctx context.Context, image string) (u User, err error) {
	ctx, cancel := c.withoutCancel(ctx)
	defer cancel()
	key := fmt.Sprintf("bottle-inspect-%d", time.Now().UnixNano())
	r, parent, err := c.imageRootFS(ctx, key, image)
	if err != nil {
		return User{}, err
	}
	ctx, done, err := c.ctrd.WithLease(ctx, leases.WithRandomID(), leases.WithExpiration(createTimeout),
		leases.WithLabels(map[string]string{"bottle.owner": "bottle", "bottle.purpose": "inspect " + image}))
	if err != nil {
		return User{}, fmt.Errorf("create lease: %w", err)
	}
	defer func() { err = errors.Join(err, done(ctx)) }()
	sn := c.ctrd.SnapshotService(c.cfg.Snapshotter)
	mounts, err := sn.View(ctx, key, parent)
	if err != nil {
		return User{}, fmt.Errorf("mount image %s: %w", image, err)
	}
	defer func() {
		if rerr := sn.Remove(ctx, key); rerr != nil && !errdefs.IsNotFound(rerr) {
			err = errors.Join(err, rerr)
		}
	}()
	err = c.withMount(ctx, mounts, func(dir string) (err error) {
		root, err := os.OpenRoot(dir)
		if err != nil {
			return err
		}
		defer func() { _ = root.Close() }()
		u, err = lookupUser(root, r.conf.User)
		return err
	})
	if err != nil {
		return User{}, fmt.Errorf("user %q of image %s: %w", r.conf.User, image, err)
	}
	return u, nil
}
