// Package supply supplies bottles with images: it pulls, pushes, builds, lists and removes
// them for the commands, and provides those that a plan lacks. Package images does the
// work in containerd, package images/buildkit the builds; this package adds what a user
// enters and reads: short names, the user's registry logins, hints.
package supply

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/imageref"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/policy"
)

// Config configures Images and the functions of this package.
type Config struct {
	// Address, Namespace and Snapshotter select the containerd.
	Address, Namespace, Snapshotter string
	StateDir                        string // on disk; contains the state of builds
	HostsDir                        string // contains a hosts.toml for each registry that needs one
	// BuildkitHost is the address of a buildkitd; empty: images are built in this process,
	// and BuildCache limits its build cache, in bytes.
	BuildkitHost string
	BuildCache   int64
	// Owner is the user whose images and build cache are used; 0: root.
	Owner int
	// Rules bound what the caller may build; nil: nothing is bound.
	Rules    *policy.Rules
	Progress func(Progress) // of pulls and pushes; may be nil
	Notice   func(string)   // what the proxy of a build's steps has refused; may be nil
	Log      *slog.Logger
}

// Images are the images of one containerd namespace.
type Images struct {
	cfg   Config
	store *images.Store
	users func(context.Context) (map[string][]string, error)
}

// New returns the images of a store. Users returns the names of the bottles that use an
// image, by its reference.
func New(cfg Config, store *images.Store, users func(context.Context) (map[string][]string, error)) *Images {
	return &Images{cfg: cfg, store: store, users: users}
}

// Progress is the progress of one part of a pull, a push or a derived image.
type Progress = images.Progress

// States of a Progress.
const (
	Waiting   = images.StateWaiting
	Active    = images.StateActive
	Unpacking = images.StateUnpacking
	Done      = images.StateDone
	Exists    = images.StateExists
)

// Pull pulls an image and unpacks it. It returns its normalised name with its digest.
func (m *Images) Pull(ctx context.Context, name string, c caller.Caller) (string, error) {
	ref, err := imageName(name)
	if err != nil {
		return "", err
	}
	img, err := m.pull(ctx, ref, c)
	if err != nil {
		return "", err
	}
	return withDigest(ref, img.Digest), nil
}

func (m *Images) pull(ctx context.Context, ref string, c caller.Caller) (images.Image, error) {
	img, err := m.store.Pull(ctx, ref, m.cfg.remote(c))
	return img, Hint(ref, err)
}

// Push pushes an image. It returns its normalised name with its digest in the registry.
func (m *Images) Push(ctx context.Context, name string, c caller.Caller) (string, error) {
	ref, err := imageName(name)
	if err != nil {
		return "", err
	}
	d, err := m.store.Push(ctx, ref, m.cfg.remote(c))
	if err != nil {
		return "", Hint(ref, err)
	}
	return withDigest(ref, d.String()), nil
}

// Image describes an image in containerd's store. The error wraps plan.ErrImageMissing.
func (m *Images) Image(ctx context.Context, ref string) (plan.ImageInfo, error) {
	img, err := m.store.Lookup(ctx, ref)
	if errors.Is(err, images.ErrMissing) || errors.Is(err, images.ErrIncomplete) { // both are pulled
		return plan.ImageInfo{}, fmt.Errorf("%w: %w", plan.ErrImageMissing, err)
	}
	if err != nil {
		return plan.ImageInfo{}, err
	}
	return plan.ImageInfo{
		Ref: img.Ref, Digest: img.Digest, Platform: img.Platform, User: img.Config.User,
		WorkDir: img.Config.WorkingDir, Env: img.Config.Env, Entrypoint: img.Config.Entrypoint, Cmd: img.Config.Cmd,
		Labels: img.Config.Labels,
	}, nil
}

// Unpack ensures that the image's layers are unpacked, and that none leads out of its root.
func (m *Images) Unpack(ctx context.Context, ref string) error {
	return Hint(ref, m.store.Unpack(ctx, ref))
}

// Status describes one image in `bottle images`.
type Status struct {
	Name    string    `json:"name"` // shortened as docker does
	Ref     string    `json:"ref"`  // normalised
	Digest  string    `json:"digest"`
	Size    int64     `json:"size_bytes"` // compressed, in the content store
	Created time.Time `json:"created"`    // when the name was given to it
	UsedBy  []string  `json:"used_by"`    // bottles, and names of images derived from it
	// Base and Directory are the sources of a derived image.
	Base      string `json:"base,omitempty"`
	Directory string `json:"directory,omitempty"`
}

// List lists the images of the namespace, newest first.
func (m *Images) List(ctx context.Context) ([]Status, error) {
	found, err := m.store.List(ctx)
	if err != nil {
		return nil, err
	}
	users, err := m.users(ctx)
	if err != nil {
		return nil, err
	}
	for _, i := range found {
		if i.Base != "" {
			users[i.Base] = append(users[i.Base], imageref.Familiar(i.Ref))
		}
	}
	out := []Status{}
	for _, i := range found {
		used := append([]string{}, users[i.Ref]...)
		slices.Sort(used)
		out = append(out, Status{
			Name: imageref.Familiar(i.Ref), Ref: i.Ref, Digest: i.Digest, Size: i.Size, Created: i.Created,
			UsedBy: used, Base: i.Base, Directory: i.Dir,
		})
	}
	slices.SortStableFunc(out, func(a, b Status) int { return b.Created.Compare(a.Created) })
	return out, nil
}

// Remove removes an image by its name or a unique prefix of its digest, and frees
// what nothing else needs. It refuses to remove an image that a bottle uses, unless
// forced; the bottle keeps its files even then. It returns the normalised name.
func (m *Images) Remove(ctx context.Context, name string, force bool) (string, error) {
	list, err := m.List(ctx)
	if err != nil {
		return "", err
	}
	img, err := find(list, name)
	if err != nil {
		return "", err
	}
	var bottles []string
	for _, u := range img.UsedBy {
		if !slices.ContainsFunc(list, func(i Status) bool { return i.Name == u }) {
			bottles = append(bottles, u)
		}
	}
	if len(bottles) > 0 && !force {
		return "", &hint.Error{
			Err:  fmt.Errorf("image %s is used by %s", img.Name, strings.Join(bottles, ", ")),
			Hint: "stop using it first, or remove it with bottle rmi -f",
		}
	}
	return img.Ref, m.store.Remove(ctx, img.Ref)
}

// minDigestPrefix is the minimum length of a digest prefix, in digits.
const minDigestPrefix = 4

// find finds an image by its name or a unique prefix of its digest.
func find(list []Status, name string) (Status, error) {
	ref, nerr := imageref.Normalize(name)
	var byDigest []Status
	for _, i := range list {
		if i.Ref == name || nerr == nil && i.Ref == ref {
			return i, nil
		}
		_, hex, _ := strings.Cut(i.Digest, ":")
		if prefix := strings.TrimPrefix(name, "sha256:"); len(prefix) >= minDigestPrefix && strings.HasPrefix(hex, prefix) {
			byDigest = append(byDigest, i)
		}
	}
	switch len(byDigest) {
	case 1:
		return byDigest[0], nil
	case 0:
		return Status{}, &hint.Error{Err: fmt.Errorf("%w: %s", plan.ErrImageMissing, name), Hint: "bottle images lists the available images"}
	}
	return Status{}, &hint.Error{Err: fmt.Errorf("ambiguous digest %s: it matches %d images", name, len(byDigest)), Hint: "use the image's name, or more digits"}
}
