package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
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

// File is put into the agent's root file system before its task starts, in
// place of one that the image has.
type File struct {
	Path string // absolute, inside
	Mode fs.FileMode
	Data []byte
	// Root makes root the owner, of parents that are missing too; otherwise it
	// is the agent's user.
	Root bool
}

// RootFS is an agent's writable snapshot, made ready but not yet in use.
type RootFS struct {
	key   string
	image containerd.Image
	conf  ocispec.ImageConfig
	User  User
}

// Config is the image's configuration.
func (r *RootFS) Config() ocispec.ImageConfig { return r.conf }

// PrepareRootFS makes the writable snapshot key over an image that is unpacked
// already, finds the image's user in it and writes files. The snapshot is a
// root of containerd's garbage collection: it stays until RemoveSnapshot. The
// error wraps ErrTaken when there is a snapshot of that key.
func (c *Client) PrepareRootFS(ctx context.Context, key, image string, files []File) (_ *RootFS, err error) {
	ctx = c.in(ctx)
	img, err := c.ctrd.GetImage(ctx, image)
	if err != nil {
		return nil, fmt.Errorf("look up image %s: %w", image, err)
	}
	ids, err := img.RootFS(ctx)
	if err != nil {
		return nil, fmt.Errorf("read layers of %s: %w", image, err)
	}
	spec, err := img.Spec(ctx)
	if err != nil {
		return nil, fmt.Errorf("read configuration of %s: %w", image, err)
	}
	sn := c.ctrd.SnapshotService(c.cfg.Snapshotter)
	mounts, err := sn.Prepare(ctx, key, identity.ChainID(ids).String(), snapshots.WithLabels(map[string]string{
		LabelName:               key,
		"containerd.io/gc.root": time.Now().UTC().Format(time.RFC3339),
	}))
	if errdefs.IsAlreadyExists(err) {
		return nil, fmt.Errorf("make snapshot %s: %w", key, ErrTaken)
	}
	if err != nil {
		return nil, fmt.Errorf("make snapshot %s: %w", key, err)
	}
	r := &RootFS{key: key, image: img, conf: spec.Config}
	err = mount.WithTempMount(ctx, mounts, func(dir string) error { return r.furnish(dir, files) })
	if err != nil {
		return nil, errors.Join(err, c.RemoveSnapshot(ctx, key))
	}
	return r, nil
}

// furnish works on the mounted snapshot. Everything goes through os.Root: an
// image's symbolic links may point anywhere, and must not lead out of it.
func (r *RootFS) furnish(dir string, files []File) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	if r.User, err = lookUser(root, r.conf.User); err != nil {
		return fmt.Errorf("user %q of image %s: %w", r.conf.User, r.image.Name(), err)
	}
	for _, f := range files {
		if err := r.write(root, f); err != nil {
			return fmt.Errorf("put %s into the bottle: %w", f.Path, err)
		}
	}
	return nil
}

func (r *RootFS) write(root *os.Root, f File) error {
	name := strings.TrimPrefix(path.Clean(f.Path), "/")
	uid, gid := int(r.User.UID), int(r.User.GID)
	if f.Root {
		uid, gid = 0, 0
	}
	if err := mkdirs(root, filepath.Dir(name), uid, gid); err != nil {
		return err
	}
	// A symbolic link of the image's would be followed, and may dangle.
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := root.WriteFile(name, f.Data, f.Mode); err != nil {
		return err
	}
	if err := root.Chown(name, uid, gid); err != nil {
		return err
	}
	return root.Chmod(name, f.Mode) // the umask may have taken bits away
}

// mkdirs makes dir's missing parts with the given owner.
func mkdirs(root *os.Root, dir string, uid, gid int) error {
	if dir == "." || dir == "/" {
		return nil
	}
	if _, err := root.Stat(dir); err == nil {
		return nil
	}
	if err := mkdirs(root, filepath.Dir(dir), uid, gid); err != nil {
		return err
	}
	if err := root.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return root.Chown(dir, uid, gid)
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
	f, err := root.Open(name)
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
	err := c.ctrd.SnapshotService(c.cfg.Snapshotter).Remove(c.in(ctx), key)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove snapshot %s: %w", key, err)
	}
	return nil
}
