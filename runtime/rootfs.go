package runtime

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/bot-bottle/bottle/internal/scratch"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ErrNoUser is wrapped if an image's user is not in its /etc/passwd.
var ErrNoUser = errors.New("user not found in the image")

// User is the user of the processes in an agent's task.
type User struct {
	UID, GID   uint32
	Additional []uint32
	Home       string
}

// RootFS is a prepared writable snapshot that is not yet in use.
type RootFS struct {
	c     *Client
	key   string
	id    string // random; a later snapshot may have the same key
	image containerd.Image
	conf  ocispec.ImageConfig
	User  User
	layer string // the directory of what is written to it
}

// Config returns the image's configuration.
func (r *RootFS) Config() ocispec.ImageConfig { return r.conf }

// Digest returns the digest of the image.
func (r *RootFS) Digest() string { return r.image.Target().Digest.String() }

// PrepareRootFS creates the writable snapshot key of an unpacked image, resolves
// the image's user, and then writes the files that files returns (nil: none). The
// snapshot is a garbage collection root of containerd and stays until Remove or
// RemoveSnapshot. The error wraps ErrTaken if the key exists. After an error
// nothing is left behind.
func (c *Client) PrepareRootFS(ctx context.Context, key, image string, files func(*RootFS) ([]File, error)) (*RootFS, error) {
	ctx, cancel := c.withoutCancel(ctx)
	defer cancel()
	r, parent, err := c.imageRootFS(ctx, key, image)
	if err != nil {
		return nil, err
	}
	mounts, err := c.ctrd.SnapshotService(c.cfg.Snapshotter).Prepare(ctx, key, parent, snapshots.WithLabels(map[string]string{
		LabelName:               key,
		LabelID:                 r.id,
		"containerd.io/gc.root": time.Now().UTC().Format(time.RFC3339),
	}))
	if errdefs.IsAlreadyExists(err) {
		return nil, fmt.Errorf("create snapshot %s: %w", key, ErrTaken)
	}
	if err != nil {
		return nil, fmt.Errorf("create snapshot %s: %w", key, err)
	}
	r.layer = writableDir(mounts)
	err = c.withMount(ctx, mounts, func(dir string) error { return r.populate(dir, files) })
	if err != nil {
		return nil, errors.Join(err, r.Remove(ctx))
	}
	return r, nil
}

// withMount runs fn on a mounted snapshot. The mount point is a scratch directory, so
// that cleanup finds the mount if this process is killed.
func (c *Client) withMount(ctx context.Context, mounts []mount.Mount, fn func(dir string) error) (err error) {
	dir, err := scratch.New(ctx, c.Dir(""))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	if err := mount.All(mount.RemoveVolatileOption(mounts), dir.Path); err != nil {
		return fmt.Errorf("mount snapshot: %w", err)
	}
	return fn(dir.Path)
}

// imageRootFS reads an image's configuration and returns it with the snapshot key
// of the image's top layer.
func (c *Client) imageRootFS(ctx context.Context, key, image string) (*RootFS, string, error) {
	img, err := c.ctrd.GetImage(ctx, image)
	if err != nil {
		return nil, "", fmt.Errorf("get image %s: %w", image, err)
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
	if conf.Env, err = checkEnv(conf.Env); err != nil {
		return nil, "", fmt.Errorf("image %s: %w", image, err)
	}
	return &RootFS{c: c, key: key, id: rand.Text(), image: img, conf: conf}, identity.ChainID(ids).String(), nil
}

// maxVariable bounds NAME=VALUE in bytes: the kernel allows 32 pages, including the
// terminating NUL (execve(2)).
const maxVariable = 128 << 10

// checkEnv returns the valid entries of an image's environment, as NAME=VALUE. It
// returns an error for a variable that the kernel rejects: no process could be
// started with it, and no runtime reports the cause.
func checkEnv(list []string) ([]string, error) {
	var out []string
	for _, kv := range list {
		name, _, ok := strings.Cut(kv, "=")
		switch {
		case !ok || name == "":
			continue
		case strings.ContainsRune(kv, 0):
			return nil, fmt.Errorf("variable %q contains a NUL byte", name)
		case len(kv) >= maxVariable:
			return nil, fmt.Errorf("variable %q is too long: %d bytes with its name (max %d)", name, len(kv), maxVariable-1)
		}
		out = append(out, kv)
	}
	return out, nil
}

// populate works on the mounted snapshot. All access goes through os.Root, because
// an image's symbolic links may point anywhere.
func (r *RootFS) populate(dir string, files func(*RootFS) ([]File, error)) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	if r.User, err = lookupUser(root, r.conf.User); err != nil {
		return fmt.Errorf("user %q of image %s: %w", r.conf.User, r.image.Name(), err)
	}
	if err := makeMountPoints(root, standardMountPoints...); err != nil {
		return err
	}
	r.makeDir(root, r.WorkDir(), 0o755, int(r.User.UID), int(r.User.GID))
	r.makeDir(root, "/tmp", fs.ModeSticky|0o777, 0, 0)
	if files == nil {
		return nil
	}
	list, err := files(r)
	if err != nil {
		return err
	}
	for _, f := range list {
		if err := r.writeFile(root, f); err != nil {
			return fmt.Errorf("write %s into the root file system: %w", f.Path, err)
		}
	}
	return nil
}

// makeDir creates a directory that an image should have. A failure is only logged: a
// session that needs the directory reports it.
func (r *RootFS) makeDir(root *os.Root, dir string, mode fs.FileMode, uid, gid int) {
	name, err := resolveInRoot(root, dir, true)
	if err == nil {
		err = mkdirAll(root, name, mode, uid, gid)
	}
	if err != nil {
		r.c.log.Info("cannot create directory", "dir", dir, "error", err)
	}
}

// WorkDir returns the image's working directory. The container itself does not
// start there: see agentSpec.
func (r *RootFS) WorkDir() string { return path.Clean("/" + r.conf.WorkingDir) }

// SetWorkDir replaces the image's working directory.
func (r *RootFS) SetWorkDir(dir string) { r.conf.WorkingDir = dir }

// Home returns the HOME of the agent's processes: the image's variable or, without
// one, the home directory in its passwd file.
func (r *RootFS) Home() string {
	for _, kv := range mergeEnv(r.conf.Env, nil, r.User.Home) {
		if home, ok := strings.CutPrefix(kv, "HOME="); ok {
			return path.Clean("/" + home)
		}
	}
	return "/"
}

// maxUserFile bounds the bytes read from an image's passwd and group files.
const maxUserFile = 4 << 20

// lookupUser resolves an image's USER ("", "name", "uid", "uid:gid", …) by the
// passwd and group files of its root.
func lookupUser(root *os.Root, spec string) (User, error) {
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

// Remove removes the snapshot, but not a later one of the same key. An absent snapshot
// is not an error; a nil RootFS has none.
func (r *RootFS) Remove(ctx context.Context) error {
	if r == nil {
		return nil
	}
	return r.c.removeSnapshot(ctx, r.key, r.id)
}

// RemoveSnapshot removes a snapshot that PrepareRootFS created. An absent snapshot
// is not an error.
func (c *Client) RemoveSnapshot(ctx context.Context, key string) error {
	return c.removeSnapshot(ctx, key, "")
}

// removeSnapshot removes the snapshot of that key that has the ID, or any if id is empty.
func (c *Client) removeSnapshot(ctx context.Context, key, id string) error {
	sn := c.ctrd.SnapshotService(c.cfg.Snapshotter)
	info, err := sn.Stat(c.withNamespace(ctx), key)
	// Keep a snapshot of that name that is not bottle's.
	if err == nil && info.Labels[LabelName] == key && (id == "" || info.Labels[LabelID] == id) {
		err = sn.Remove(c.withNamespace(ctx), key)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove snapshot %s: %w", key, err)
	}
	return nil
}
