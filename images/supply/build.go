package supply

import (
	"context"
	"errors"
	"path/filepath"
	"strings"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/images/buildkit"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/imageref"
)

// DefaultBuildCache is the default limit of the build cache, in bytes.
const DefaultBuildCache = 20 << 30

type (
	// Request is one build.
	Request struct {
		buildkit.Request
		Network Network // of its steps
	}
	// Secret is a value that a build's steps may read.
	Secret = buildkit.Secret
	// SSHAgent is an ssh agent that a build's steps may use.
	SSHAgent = buildkit.SSHAgent
	// Result is the result of a build.
	Result = buildkit.Result
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
func Build(ctx context.Context, cfg Config, c caller.Caller, req Request, wait func()) (Result, error) {
	for i, name := range req.Names {
		ref, err := imageref.Normalize(name)
		if err != nil {
			return Result{}, &hint.Error{Err: err, Hint: "use a name such as registry.example/name:tag"}
		}
		req.Names[i] = ref
	}
	if err := cfg.Rules.Build(req.Network.Host, req.Network.Allow); err != nil {
		return Result{}, err
	}
	req.Caller, req.Credentials = c.User(), login(c).Find
	bk := cfg.builder(wait)
	if req.Network.Host {
		res, err := buildkit.Build(ctx, bk, req.Request)
		return res, buildHint(err)
	}
	serve, refused, err := stepProxy(req.Network.bounded(cfg.Rules), cfg.Rules.Never())
	if err != nil {
		return Result{}, err
	}
	bk.StepProxy = serve
	res, err := buildkit.Build(ctx, bk, req.Request)
	if cfg.Notice != nil {
		for _, r := range refused() {
			cfg.Notice("The build's proxy refused " + r)
		}
	}
	return res, buildHint(err)
}

// Prune removes the build cache and returns the number of bytes freed.
func Prune(ctx context.Context, cfg Config, wait func()) (int64, error) {
	freed, err := buildkit.Prune(ctx, cfg.builder(wait), true)
	return freed, buildHint(err)
}

// builder returns the configuration of builds. The name of a containerd namespace never
// begins with a dot, so the directory cannot be that of a namespace.
func (c Config) builder(wait func()) buildkit.Config {
	return buildkit.Config{
		Address: c.Address, Namespace: c.Namespace, Snapshotter: c.Snapshotter,
		StateDir: filepath.Join(c.StateDir, ".build"), HostsDir: c.HostsDir, CacheSize: c.BuildCache, Host: c.BuildkitHost,
		CheckLayer: images.CheckLayer, Unpack: images.Unpacker(c.Namespace, c.Snapshotter), Wait: wait, Owner: c.Owner, Log: c.Log,
	}
}

func buildHint(err error) error {
	if denied, ok := errors.AsType[*buildkit.DeniedError](err); ok {
		return &hint.Error{Err: err, Hint: loginHint(denied.Host)}
	}
	switch {
	case err != nil && strings.Contains(err.Error(), "transport 'ssh' not allowed"):
		return &hint.Error{Err: err, Hint: "git over ssh cannot use the build's proxy: use https, or the host's network (network: host)"}
	case errors.Is(err, buildkit.ErrUnreadable):
		return &hint.Error{Err: err, Hint: "change its permissions, or exclude it in .dockerignore"}
	case errors.Is(err, buildkit.ErrNoSpace):
		return &hint.Error{Err: err, Hint: "free space: remove the build cache with bottle build --prune"}
	case errors.Is(err, buildkit.ErrPermission):
		return &hint.Error{Err: err, Hint: "run bottle as root: sudo bottle …"}
	case errors.Is(err, buildkit.ErrNoContainerd):
		return &hint.Error{Err: err, Hint: "start containerd (systemctl start containerd), install it (bottle setup), or set its socket with --address or CONTAINERD_ADDRESS"}
	}
	return err
}
