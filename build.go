package bottle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/images/agent"
	"github.com/bot-bottle/bottle/images/buildkit"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/imageref"
	"github.com/bot-bottle/bottle/plan"
)

// DefaultBuildCache bounds what builds keep for the next one, in bytes.
const DefaultBuildCache = 20 << 30

type (
	// BuildRequest is one build.
	BuildRequest = buildkit.Request
	// BuildSecret is a value that a build's steps may read.
	BuildSecret = buildkit.Secret
	// BuildResult tells what was built.
	BuildResult = buildkit.Result
)

// BuildProgress are the ways to show a build's progress.
var BuildProgress = buildkit.Modes

// Build makes an image from a Dockerfile. Names are made whole as docker does.
// It needs containerd and runc, and neither gVisor nor CNI plugins. wait is
// told when another build has to end first.
func Build(ctx context.Context, cfg Config, req BuildRequest, wait func()) (BuildResult, error) {
	for i, name := range req.Names {
		ref, err := imageref.Normalize(name)
		if err != nil {
			return BuildResult{}, &hint.Error{Err: err, Hint: "name it such as registry.example/name:tag"}
		}
		req.Names[i] = ref
	}
	res, err := buildkit.Build(ctx, cfg.builder(wait), req)
	return res, buildHint(err)
}

// PruneBuilds removes what builds have kept, and returns how many bytes that
// freed.
func PruneBuilds(ctx context.Context, cfg Config, wait func()) (int64, error) {
	freed, err := buildkit.Prune(ctx, cfg.builder(wait), true)
	return freed, buildHint(err)
}

// builder is this configuration as builds have it. A containerd namespace's name
// never begins with a dot, so that the folder is no namespace's.
func (c Config) builder(wait func()) buildkit.Config {
	return buildkit.Config{
		Address: c.Address, Namespace: c.Namespace, Snapshotter: c.Snapshotter,
		StateDir: filepath.Join(c.StateDir, ".build"), CacheSize: c.BuildCache, Host: c.BuildkitHost,
		CheckLayer: images.CheckLayer, Unpack: images.Unpacker(c.Namespace, c.Snapshotter), Wait: wait, Log: c.Log,
	}
}

func buildHint(err error) error {
	switch {
	case errors.Is(err, buildkit.ErrNoSpace):
		return &hint.Error{Err: err, Hint: "make room: bottle build --prune removes what builds have kept"}
	case errors.Is(err, buildkit.ErrPermission):
		return &hint.Error{Err: err, Hint: "run bottle as root: sudo bottle …"}
	case errors.Is(err, buildkit.ErrNoContainerd):
		return &hint.Error{Err: err, Hint: "start containerd (systemctl start containerd), or name its socket with --address or CONTAINERD_ADDRESS"}
	}
	return err
}

// ImageOptions says how ProvideImages shows its work.
type ImageOptions struct {
	Progress string    // of builds, one of BuildProgress
	Out      io.Writer // receives the progress of builds
	// Wait is called if another build has to end first; nil: not.
	Wait func()
}

// ProvideImages builds and pulls the images that the plan lacks, and returns the plan
// completed with them. A build that has nothing to do shows no progress.
func (e *Engine) ProvideImages(ctx context.Context, p *plan.Plan, o ImageOptions) (*plan.Plan, error) {
	if !p.Pending() {
		return p, nil
	}
	if p.Build != nil {
		req := buildRequest(p.Build)
		req.Progress, req.Out, req.QuietIfCached, req.DockerConfig = o.Progress, o.Out, true, p.Caller().DockerConfigDir()
		if _, err := Build(ctx, e.cfg, req, o.Wait); err != nil {
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
		err = fmt.Errorf("the image has the digest %s, not %s", proxy.Digest, p.Proxy.Digest)
	}
	if err != nil {
		return nil, proxyHint(ctx, p.Proxy, err)
	}
	return p.WithImages(agent, &proxy)
}

func buildRequest(b *plan.Build) BuildRequest {
	req := BuildRequest{
		Names: []string{b.Image}, Context: b.Context, Dockerfile: b.Dockerfile, Target: b.Target,
		Args: b.Args(), Labels: b.Labels(),
	}
	if b.Default {
		req.Dockerfile, req.Text = "bottle's own Dockerfile", agent.Dockerfile()
	}
	for _, s := range b.SecretValues() {
		req.Secrets = append(req.Secrets, BuildSecret{ID: s.ID, Value: func() []byte { return []byte(s.Value.Reveal()) }})
	}
	return req
}
