package bottle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/images/agent"
	"github.com/bot-bottle/bottle/images/buildkit"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/imageref"
	"github.com/bot-bottle/bottle/plan"
)

// ImageProgress is the progress of one part of a pull, a push or a derived image.
type ImageProgress = images.Progress

// States of an ImageProgress.
const (
	ImageWaiting   = images.StateWaiting
	ImageActive    = images.StateActive
	ImageUnpacking = images.StateUnpacking
	ImageDone      = images.StateDone
	ImageExists    = images.StateExists
)

// Pull pulls an image and unpacks it. It returns its normalised name with its digest.
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
	img, err := e.images.Pull(ctx, ref, e.cfg.remote(c))
	return img, registryHint(ref, err)
}

// Push pushes an image. It returns its normalised name with its digest in the registry.
func (e *Engine) Push(ctx context.Context, name string, c caller.Caller) (string, error) {
	ref, err := imageName(name)
	if err != nil {
		return "", err
	}
	d, err := e.images.Push(ctx, ref, e.cfg.remote(c))
	if err != nil {
		return "", registryHint(ref, err)
	}
	return withDigest(ref, d.String()), nil
}

func (c Config) remote(user caller.Caller) images.Remote {
	return images.Remote{HostsDir: c.HostsDir, Progress: c.Progress, Login: login(user)}
}

// login returns the caller's registry credentials.
func login(c caller.Caller) images.Login {
	return images.Login{ConfigDir: c.DockerConfigDir(), Home: c.Home, User: c.User(), Environ: c.Environment()}
}

func loginHint(host string) string {
	return "check the name, and log in to " + host + ": run docker login, or add an entry to ~/.docker/config.json, as the user who runs bottle"
}

func imageName(name string) (string, error) {
	ref, err := imageref.Normalize(name)
	if err != nil {
		return "", &hint.Error{Err: fmt.Errorf("%q is %w", name, err), Hint: "use NAME, NAME:TAG or NAME@DIGEST, prefixed with the registry"}
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
		fix = "bottle images lists the available images"
	case errors.Is(err, images.ErrIncomplete):
		fix = "bottle pull fetches the missing parts, bottle build builds it again"
	case errors.Is(err, images.ErrPlatform):
		fix = "use an image for this host's platform"
	case errors.Is(err, images.ErrNotFound):
		fix = "check its name and tag"
	case errors.Is(err, images.ErrDenied):
		if denied, ok := errors.AsType[*images.DeniedError](err); ok {
			host = denied.Host // may be a mirror
		}
		fix = loginHint(host)
	case errors.Is(err, images.ErrUntrusted):
		fix = "set its certificate authority as ca in " + images.DefaultHostsDir + "/" + host + "/hosts.toml"
	case errors.Is(err, images.ErrUnreachable):
		fix = "check the network and the registry's name; a registry without TLS must be configured in " + images.DefaultHostsDir + "/" + host + "/hosts.toml"
	case errors.Is(err, images.ErrCorrupt):
		fix = "try again; if the error persists, the registry's copy is damaged: push it again"
	case errors.Is(err, images.ErrLayer):
		fix = "the image is malformed or malicious: use another one"
	case errors.Is(err, images.ErrNoSpace):
		fix = "free space: remove images with bottle rmi"
	default:
		return err
	}
	return &hint.Error{Err: err, Hint: fix}
}

// ImageStatus describes one image in `bottle images`.
type ImageStatus struct {
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

// Images lists the images of the namespace, newest first.
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
			UsedBy: used, Base: i.Base, Directory: i.Dir,
		})
	}
	slices.SortStableFunc(out, func(a, b ImageStatus) int { return b.Created.Compare(a.Created) })
	return out, nil
}

// RemoveImage removes an image by its name or a unique prefix of its digest, and frees
// what nothing else needs. It refuses to remove an image that a bottle uses, unless
// forced; the bottle keeps its files even then. It returns the normalised name.
func (e *Engine) RemoveImage(ctx context.Context, name string, force bool) (string, error) {
	list, err := e.Images(ctx)
	if err != nil {
		return "", err
	}
	img, err := findImage(list, name)
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
			Hint: "stop using it first, or remove it with bottle rmi -f",
		}
	}
	return img.Ref, e.images.Remove(ctx, img.Ref)
}

// minDigestPrefix is the minimum length of a digest prefix, in digits.
const minDigestPrefix = 4

// findImage finds an image by its name or a unique prefix of its digest.
func findImage(list []ImageStatus, name string) (ImageStatus, error) {
	ref, nerr := imageref.Normalize(name)
	var byDigest []ImageStatus
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
		return ImageStatus{}, &hint.Error{Err: fmt.Errorf("%w: %s", plan.ErrImageMissing, name), Hint: "bottle images lists the available images"}
	}
	return ImageStatus{}, &hint.Error{Err: fmt.Errorf("ambiguous digest %s: it matches %d images", name, len(byDigest)), Hint: "use the image's name, or more digits"}
}

// DefaultBuildCache is the default limit of the build cache, in bytes.
const DefaultBuildCache = 20 << 30

type (
	// BuildRequest is one build.
	BuildRequest = buildkit.Request
	// BuildSecret is a value that a build's steps may read.
	BuildSecret = buildkit.Secret
	// BuildSSHAgent is an ssh agent that a build's steps may use.
	BuildSSHAgent = buildkit.SSHAgent
	// BuildResult is the result of a build.
	BuildResult = buildkit.Result
)

// BuildProgress lists the ways to show a build's progress.
var BuildProgress = buildkit.Modes

// ArchiveHeader is the number of bytes that IsArchive needs.
const ArchiveHeader = buildkit.ArchiveHeader

// IsArchive reports whether a build context that begins with header is a tar archive,
// possibly compressed. Otherwise it may be a Dockerfile.
func IsArchive(header []byte) bool { return buildkit.IsArchive(header) }

// Build builds an image from a Dockerfile. It normalises names as docker does. It needs
// containerd and runc, but neither gVisor nor CNI plugins. It calls wait if it must wait
// for another build.
func Build(ctx context.Context, cfg Config, c caller.Caller, req BuildRequest, wait func()) (BuildResult, error) {
	for i, name := range req.Names {
		ref, err := imageref.Normalize(name)
		if err != nil {
			return BuildResult{}, &hint.Error{Err: err, Hint: "use a name such as registry.example/name:tag"}
		}
		req.Names[i] = ref
	}
	req.Caller, req.Credentials = c.User(), login(c).Find
	res, err := buildkit.Build(ctx, cfg.builder(wait), req)
	return res, buildHint(err)
}

// PruneBuilds removes the build cache and returns the number of bytes freed.
func PruneBuilds(ctx context.Context, cfg Config, wait func()) (int64, error) {
	freed, err := buildkit.Prune(ctx, cfg.builder(wait), true)
	return freed, buildHint(err)
}

// builder returns the configuration of builds. The name of a containerd namespace never
// begins with a dot, so the directory cannot be that of a namespace.
func (c Config) builder(wait func()) buildkit.Config {
	return buildkit.Config{
		Address: c.Address, Namespace: c.Namespace, Snapshotter: c.Snapshotter,
		StateDir: filepath.Join(c.StateDir, ".build"), HostsDir: c.HostsDir, CacheSize: c.BuildCache, Host: c.BuildkitHost,
		CheckLayer: images.CheckLayer, Unpack: images.Unpacker(c.Namespace, c.Snapshotter), Wait: wait, Log: c.Log,
	}
}

func buildHint(err error) error {
	if denied, ok := errors.AsType[*buildkit.DeniedError](err); ok {
		return &hint.Error{Err: err, Hint: loginHint(denied.Host)}
	}
	switch {
	case errors.Is(err, buildkit.ErrUnreadable):
		return &hint.Error{Err: err, Hint: "change its permissions, or exclude it in .dockerignore"}
	case errors.Is(err, buildkit.ErrNoSpace):
		return &hint.Error{Err: err, Hint: "free space: remove the build cache with bottle build --prune"}
	case errors.Is(err, buildkit.ErrPermission):
		return &hint.Error{Err: err, Hint: "run bottle as root: sudo bottle …"}
	case errors.Is(err, buildkit.ErrNoContainerd):
		return &hint.Error{Err: err, Hint: "start containerd (systemctl start containerd), or set its socket with --address or CONTAINERD_ADDRESS"}
	}
	return err
}

// ImageOptions are the options of ProvideImages.
type ImageOptions struct {
	Progress string    // of builds, one of BuildProgress
	Out      io.Writer // receives the progress of builds
	// Wait is called if ProvideImages must wait for another build; it may be nil.
	Wait func()
}

// ProvideImages builds and pulls the images that the plan lacks, and returns the
// completed plan. A fully cached build shows no progress.
func (e *Engine) ProvideImages(ctx context.Context, p *plan.Plan, o ImageOptions) (*plan.Plan, error) {
	if !p.Pending() {
		return p, nil
	}
	if p.Build != nil {
		req := buildRequest(p.Build)
		req.Progress, req.Out, req.QuietIfCached = o.Progress, o.Out, true
		if _, err := Build(ctx, e.cfg, p.Caller(), req, o.Wait); err != nil {
			return nil, fmt.Errorf("build %s: %w", p.Build.Image, err)
		}
	}
	if p.Pull != "" {
		if _, err := e.pull(ctx, p.Pull, p.Caller()); err != nil {
			return nil, err
		}
	}
	image := p.Image
	if p.BaseRef != "" {
		image = p.BaseRef
	}
	agent, err := e.Image(ctx, image)
	if err != nil {
		return nil, err
	}
	if !p.Proxy.Pull {
		return p.WithImages(agent, nil)
	}
	if _, err := e.pull(ctx, p.Proxy.Image, p.Caller()); err != nil {
		return nil, proxyHint(ctx, p.Proxy, err)
	}
	proxy, err := e.Image(ctx, p.Proxy.Image)
	if err == nil && p.Proxy.Digest != "" && proxy.Digest != p.Proxy.Digest {
		err = fmt.Errorf("digest mismatch: got %s, want %s", proxy.Digest, p.Proxy.Digest)
	}
	if err != nil {
		return nil, proxyHint(ctx, p.Proxy, err)
	}
	return p.WithImages(agent, &proxy)
}

func buildRequest(b *plan.Build) BuildRequest {
	req := BuildRequest{
		Names: []string{b.Image}, Context: b.Context, Dockerfile: b.Dockerfile, Target: b.Target,
		Args: b.Args, Labels: b.Labels(),
	}
	if b.Default {
		req.Dockerfile, req.Text = "bottle's own Dockerfile", agent.Dockerfile()
	}
	for _, s := range b.Secrets {
		req.Secrets = append(req.Secrets, BuildSecret{ID: s.ID, Value: func() []byte { return []byte(s.Value.Reveal()) }})
	}
	return req
}
