package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ErrNoUser is wrapped when an image names a user that its /etc/passwd lacks.
var ErrNoUser = errors.New("no such user in the image")

// User is whom a process in the agent's task runs as.
type User struct {
	UID, GID   uint32
	Additional []uint32
	Home       string
}

// RootFS is an agent's writable snapshot, made ready but not yet in use.
type RootFS struct {
	key   string
	image containerd.Image
	conf  ocispec.ImageConfig
	log   *slog.Logger
	User  User
}

// Config is the image's configuration.
func (r *RootFS) Config() ocispec.ImageConfig { return r.conf }

// PrepareRootFS makes the writable snapshot key over an image that is unpacked
// already, finds the image's user in it and writes what files returns when that
// is known (nil: nothing). The snapshot is a root of containerd's garbage collection: it stays until RemoveSnapshot. The
// error wraps ErrTaken when the key is; after an error nothing is left.
func (c *Client) PrepareRootFS(ctx context.Context, key, image string, files func(*RootFS) ([]File, error)) (*RootFS, error) {
	ctx, cancel := whole(c.in(ctx))
	defer cancel()
	r, parent, err := c.imageRootFS(ctx, key, image)
	if err != nil {
		return nil, err
	}
	mounts, err := c.ctrd.SnapshotService(c.cfg.Snapshotter).Prepare(ctx, key, parent, snapshots.WithLabels(map[string]string{
		LabelName:               key,
		"containerd.io/gc.root": time.Now().UTC().Format(time.RFC3339),
	}))
	if errdefs.IsAlreadyExists(err) {
		return nil, fmt.Errorf("make snapshot %s: %w", key, ErrTaken)
	}
	if err != nil {
		return nil, fmt.Errorf("make snapshot %s: %w", key, err)
	}
	err = within(ctx, mount.WithTempMount, mounts, func(dir string) error { return r.furnish(dir, files) })
	if err != nil {
		return nil, errors.Join(err, c.RemoveSnapshot(ctx, key))
	}
	return r, nil
}

// within runs fn on a mounted snapshot. fn's own error comes back as it is, unless
// there is one of the unmounting too: where the mount was helps nobody.
func within(ctx context.Context, with func(context.Context, []mount.Mount, func(string) error) error, mounts []mount.Mount, fn func(dir string) error) error {
	var own error
	err := with(ctx, mounts, func(dir string) error { own = fn(dir); return own })
	if own != nil && strings.HasPrefix(err.Error(), "mount callback failed on ") {
		return own
	}
	return err
}

// imageRootFS reads what a root file system takes over from its image, and the
// snapshot of the image's top layer.
func (c *Client) imageRootFS(ctx context.Context, key, image string) (*RootFS, string, error) {
	img, err := c.ctrd.GetImage(ctx, image)
	if err != nil {
		return nil, "", fmt.Errorf("look up image %s: %w", image, err)
	}
	ids, err := img.RootFS(ctx)
	if err != nil {
		return nil, "", fmt.Errorf("read layers of %s: %w", image, err)
	}
	spec, err := img.Spec(ctx)
	if err != nil {
		return nil, "", fmt.Errorf("read configuration of %s: %w", image, err)
	}
	conf := spec.Config
	if conf.Env, err = variables(conf.Env); err != nil {
		return nil, "", fmt.Errorf("image %s: %w", image, err)
	}
	return &RootFS{key: key, image: img, conf: conf, log: c.log}, identity.ChainID(ids).String(), nil
}

// maxVariable bounds a variable with its name, in bytes: the kernel takes 32 pages,
// with the NUL at the end (execve(2)).
const maxVariable = 128 << 10

// variables are those of an image's that can be set, as NAME=VALUE. With one that
// the kernel does not take nothing could be started, and no runtime says why.
func variables(list []string) ([]string, error) {
	var out []string
	for _, kv := range list {
		name, _, ok := strings.Cut(kv, "=")
		switch {
		case !ok || name == "":
			continue
		case strings.ContainsRune(kv, 0):
			return nil, fmt.Errorf("its variable %q holds a NUL byte, which none can", name)
		case len(kv) >= maxVariable:
			return nil, fmt.Errorf("its variable %q is too long: with its name it has %d bytes, and the kernel takes %d", name, len(kv), maxVariable-1)
		}
		out = append(out, kv)
	}
	return out, nil
}

// furnish works on the mounted snapshot. Everything goes through os.Root: an
// image's symbolic links may point anywhere, and must not lead out of it.
func (r *RootFS) furnish(dir string, files func(*RootFS) ([]File, error)) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	if r.User, err = lookUser(root, r.conf.User); err != nil {
		return fmt.Errorf("user %q of image %s: %w", r.conf.User, r.image.Name(), err)
	}
	if err := mountPoints(root, standardPoints...); err != nil {
		return err
	}
	// One that cannot be made is told where it is missed, inside.
	dir, err = inside(root, r.WorkDir(), true)
	if err == nil {
		err = mkdir(root, dir, 0o755, int(r.User.UID), int(r.User.GID))
	}
	if err != nil {
		r.log.Info("working directory not made", "dir", r.WorkDir(), "error", err)
	}
	if files == nil {
		return nil
	}
	list, err := files(r)
	if err != nil {
		return err
	}
	for _, f := range list {
		if err := r.put(root, f); err != nil {
			return fmt.Errorf("put %s into the bottle: %w", f.Path, err)
		}
	}
	return nil
}

// WorkDir is where the image's commands are to begin. The container does not begin
// there: see agentSpec.
func (r *RootFS) WorkDir() string { return path.Clean("/" + r.conf.WorkingDir) }

// Home is the HOME that processes have: the image's variable, or else what its
// passwd file says.
func (r *RootFS) Home() string {
	for _, kv := range environ(r.conf.Env, nil, r.User.Home) {
		if home, ok := strings.CutPrefix(kv, "HOME="); ok {
			return path.Clean("/" + home)
		}
	}
	return "/"
}

// maxUserFile bounds what is read of an image's passwd and group files.
const maxUserFile = 4 << 20

// lookUser resolves an image's USER ("", "name", "uid", "uid:gid", …) by the
// passwd and group files of its root.
func lookUser(root *os.Root, spec string) (User, error) {
	passwd, closeP, err := openUserFile(root, "etc/passwd")
	if err != nil {
		return User{}, err
	}
	defer closeP()
	group, closeG, err := openUserFile(root, "etc/group")
	if err != nil {
		return User{}, err
	}
	defer closeG()
	eu, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, passwd, group)
	if err != nil {
		return User{}, fmt.Errorf("%w: %w", ErrNoUser, err)
	}
	u := User{UID: uint32(eu.Uid), GID: uint32(eu.Gid), Home: eu.Home}
	for _, g := range eu.Sgids {
		u.Additional = append(u.Additional, uint32(g))
	}
	return u, nil
}

func openUserFile(root *os.Root, name string) (io.Reader, func(), error) {
	f, err := openRegular(root, name)
	if errors.Is(err, fs.ErrNotExist) {
		return strings.NewReader(""), func() {}, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open /%s of the image: %w", name, err)
	}
	return io.LimitReader(f, maxUserFile), func() { _ = f.Close() }, nil
}

// RemoveSnapshot removes a snapshot that PrepareRootFS made. One that is not
// there is no error.
func (c *Client) RemoveSnapshot(ctx context.Context, key string) error {
	sn := c.ctrd.SnapshotService(c.cfg.Snapshotter)
	info, err := sn.Stat(c.in(ctx), key)
	// A snapshot of that name that is somebody else's stays.
	if err == nil && info.Labels[LabelName] == key {
		err = sn.Remove(c.in(ctx), key)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove snapshot %s: %w", key, err)
	}
	return nil
}
