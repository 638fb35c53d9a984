package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// User resolves a user of a container ("name", "uid", "uid:gid", …) by the passwd and
// group files that its root file system had at the launch. Under gVisor, changes that the
// agent makes to them are not seen, and so cannot choose the user. The error wraps
// ErrNoUser if there is no such user, and ErrNotRunning if there is no such container.
func (c *Client) User(ctx context.Context, id, spec string) (u User, err error) {
	ctx = c.withNamespace(ctx)
	cont, err := c.ctrd.LoadContainer(ctx, id)
	if err != nil {
		return User{}, fmt.Errorf("load container %s: %w", id, notRunning(err))
	}
	info, err := cont.Info(ctx, containerd.WithoutRefreshedMetadata)
	if err != nil {
		return User{}, fmt.Errorf("read container %s: %w", id, err)
	}
	mounts, err := c.ctrd.SnapshotService(c.cfg.Snapshotter).Mounts(ctx, info.SnapshotKey)
	if errdefs.IsNotFound(err) {
		return User{}, fmt.Errorf("read the root file system of %s: %w", id, ErrNotRunning)
	}
	if err != nil {
		return User{}, fmt.Errorf("read the root file system of %s: %w", id, err)
	}
	err = c.withMount(ctx, readOnly(mounts), func(dir string) (err error) {
		root, err := os.OpenRoot(dir)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, root.Close()) }()
		u, err = lookupUser(root, spec)
		return err
	})
	if err != nil {
		return User{}, fmt.Errorf("user %q: %w", spec, err)
	}
	return u, nil
}

// readOnly returns read-only mounts of a writable snapshot. Its writable layer becomes the
// top one of overlayfs's lower layers, because two mounts must not write to it.
func readOnly(mounts []mount.Mount) []mount.Mount {
	var out []mount.Mount
	for _, m := range mounts {
		options, upper := []string{"ro"}, ""
		for _, o := range m.Options {
			if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
				upper = dir
			} else if !strings.HasPrefix(o, "workdir=") && o != "rw" {
				options = append(options, o)
			}
		}
		for i, o := range options {
			if lower, ok := strings.CutPrefix(o, "lowerdir="); ok && upper != "" {
				options[i] = "lowerdir=" + upper + ":" + lower
			}
		}
		m.Options = options
		out = append(out, m)
	}
	return out
}

// setUser makes p a process of another user than the agent's. It never has more
// capabilities than the agent's own processes: only an agent that is root has any, and
// only its root keeps them.
func setUser(p *specs.Process, runtime string, u User) {
	if u.UID != p.User.UID && u.UID != 0 {
		p.Capabilities = &specs.LinuxCapabilities{}
	}
	p.User = processUser(runtime, u)
	p.Env = mergeEnv(p.Env, []string{"HOME=" + u.Home}, u.Home)
}
