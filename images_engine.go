package bottle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/imageref"
	"github.com/bot-bottle/bottle/plan"
)

// ImageProgress tells how far one part of a pull, a push or a derived image is.
type ImageProgress = images.Progress

// Their states.
const (
	ImageWaiting   = images.StateWaiting
	ImageActive    = images.StateActive
	ImageUnpacking = images.StateUnpacking
	ImageDone      = images.StateDone
	ImageThere     = images.StateExists
)

// Pull brings an image from its registry and makes it ready to run. It returns
// its normalised name with the digest that it has now.
func (e *Engine) Pull(ctx context.Context, name string, c caller.Caller) (string, error) {
	ref, err := imageName(name)
	if err != nil {
		return "", err
	}
	img, err := e.pull(ctx, ref, c)
	if err != nil {
		return "", err
	}
	return withDigest(ref, img.Digest), nil
}

func (e *Engine) pull(ctx context.Context, ref string, c caller.Caller) (images.Image, error) {
	img, err := e.images.Pull(ctx, ref, e.remote(c))
	return img, registryHint(ref, err)
}

// Push sends an image to its registry. It returns its normalised name with the
// digest that it has there.
func (e *Engine) Push(ctx context.Context, name string, c caller.Caller) (string, error) {
	ref, err := imageName(name)
	if err != nil {
		return "", err
	}
	d, err := e.images.Push(ctx, ref, e.remote(c))
	if err != nil {
		return "", registryHint(ref, err)
	}
	return withDigest(ref, d.String()), nil
}

func (e *Engine) remote(c caller.Caller) images.Remote {
	return images.Remote{
		HostsDir: e.cfg.HostsDir, Progress: e.cfg.Progress,
		Login: images.Login{ConfigDir: c.DockerConfigDir(), Home: c.Home, UID: c.UID, GID: c.GID, Environ: c.Environment()},
	}
}

func imageName(name string) (string, error) {
	ref, err := imageref.Normalize(name)
	if err != nil {
		return "", &hint.Error{Err: fmt.Errorf("%q is %w", name, err), Hint: "write NAME, NAME:TAG or NAME@DIGEST, with the registry before it"}
	}
	return ref, nil
}

func withDigest(ref, digest string) string {
	if strings.Contains(ref, "@") {
		return ref
	}
	return ref + "@" + digest
}

func registryHint(ref string, err error) error {
	fix := ""
	host := "the registry"
	if named, perr := reference.ParseNormalizedNamed(ref); perr == nil {
		host = reference.Domain(named)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, images.ErrMissing):
		fix = "bottle images lists those that are there"
	case errors.Is(err, images.ErrIncomplete):
		fix = "bottle pull brings what is not there, bottle build makes it anew"
	case errors.Is(err, images.ErrPlatform):
		fix = "use an image that is made for this host's platform"
	case errors.Is(err, images.ErrNotFound):
		fix = "check its name and tag"
	case errors.Is(err, images.ErrDenied):
		fix = "check the name, and log in to " + host + ": docker login, or an entry in ~/.docker/config.json, as the user who calls bottle"
	case errors.Is(err, images.ErrUntrusted):
		fix = "name its authority as ca in " + images.DefaultHostsDir + "/" + host + "/hosts.toml"
	case errors.Is(err, images.ErrUnreachable):
		fix = "check the network and the registry's name; a registry without TLS has to be named in " + images.DefaultHostsDir + "/" + host + "/hosts.toml"
	case errors.Is(err, images.ErrCorrupt):
		fix = "try again; if it stays so, the registry's copy is damaged: push it anew"
	case errors.Is(err, images.ErrLayer):
		fix = "the image is made wrongly, or to do harm: use another"
	case errors.Is(err, images.ErrNoSpace):
		fix = "make room: bottle rmi removes images"
	default:
		return err
	}
	return &hint.Error{Err: err, Hint: fix}
}

// ImageStatus is one image as `bottle images` shows it.
type ImageStatus struct {
	Name    string    `json:"name"` // as short as docker writes it
	Ref     string    `json:"ref"`  // normalised
	Digest  string    `json:"digest"`
	Size    int64     `json:"size_bytes"` // packed, in the content store
	Created time.Time `json:"created"`    // when the name came to stand for it
	UsedBy  []string  `json:"used_by"`    // bottles, and names of images derived from it
	// Base and Folder are what a derived image was made of.
	Base   string `json:"base,omitempty"`
	Folder string `json:"folder,omitempty"`
}

// Images lists the images of the namespace, the youngest first.
func (e *Engine) Images(ctx context.Context) ([]ImageStatus, error) {
	found, err := e.images.List(ctx)
	if err != nil {
		return nil, err
	}
	bottles, err := e.List(ctx, true)
	if err != nil {
		return nil, err
	}
	users := map[string][]string{}
	for _, b := range bottles {
		users[b.Image] = append(users[b.Image], b.Name)
	}
	for _, i := range found {
		if i.Base != "" {
			users[i.Base] = append(users[i.Base], imageref.Familiar(i.Ref))
		}
	}
	out := []ImageStatus{}
	for _, i := range found {
		used := append([]string{}, users[i.Ref]...)
		slices.Sort(used)
		out = append(out, ImageStatus{
			Name: imageref.Familiar(i.Ref), Ref: i.Ref, Digest: i.Digest, Size: i.Size, Created: i.Created,
			UsedBy: used, Base: i.Base, Folder: i.Dir,
		})
	}
	slices.SortStableFunc(out, func(a, b ImageStatus) int { return b.Created.Compare(a.Created) })
	return out, nil
}

// RemoveImage removes an image by its name, or by the beginning of its digest if
// no other's begins so, and frees what nothing else needs. One that a bottle
// uses stays, unless forced; the bottle keeps its files even then. It returns
// the normalised name.
func (e *Engine) RemoveImage(ctx context.Context, name string, force bool) (string, error) {
	list, err := e.Images(ctx)
	if err != nil {
		return "", err
	}
	img, err := pick(list, name)
	if err != nil {
		return "", err
	}
	var bottles []string
	for _, u := range img.UsedBy {
		if !slices.ContainsFunc(list, func(i ImageStatus) bool { return i.Name == u }) {
			bottles = append(bottles, u)
		}
	}
	if len(bottles) > 0 && !force {
		return "", &hint.Error{
			Err:  fmt.Errorf("image %s is used by %s", img.Name, strings.Join(bottles, ", ")),
			Hint: "end what uses it, or remove it with bottle rmi -f",
		}
	}
	return img.Ref, e.images.Remove(ctx, img.Ref)
}

// minDigest is how many digits of a digest have to be given.
const minDigest = 4

func pick(list []ImageStatus, name string) (ImageStatus, error) {
	ref, nerr := imageref.Normalize(name)
	var byDigest []ImageStatus
	for _, i := range list {
		if i.Ref == name || nerr == nil && i.Ref == ref {
			return i, nil
		}
		_, hex, _ := strings.Cut(i.Digest, ":")
		if part := strings.TrimPrefix(name, "sha256:"); len(part) >= minDigest && strings.HasPrefix(hex, part) {
			byDigest = append(byDigest, i)
		}
	}
	switch len(byDigest) {
	case 1:
		return byDigest[0], nil
	case 0:
		return ImageStatus{}, &hint.Error{Err: fmt.Errorf("%w: %s", plan.ErrImageMissing, name), Hint: "bottle images lists those that are there"}
	}
	return ImageStatus{}, &hint.Error{Err: fmt.Errorf("%d images have a digest that begins with %s", len(byDigest), name), Hint: "give a name"}
}
