package supply

import (
	"context"
	"fmt"
	"io"

	"github.com/bot-bottle/bottle/agents"
	"github.com/bot-bottle/bottle/images/agent"
	"github.com/bot-bottle/bottle/images/buildkit"
	"github.com/bot-bottle/bottle/plan"
)

// Options are the options of Provide.
type Options struct {
	Progress string    // of builds, one of BuildProgress
	Out      io.Writer // receives the progress of builds
	// Wait is called if Provide must wait for another build; it may be nil.
	Wait func()
}

// Provide builds and pulls the images that the plan lacks, and returns the
// completed plan. A fully cached build shows no progress.
func (m *Images) Provide(ctx context.Context, p *plan.Plan, o Options) (*plan.Plan, error) {
	if !p.Pending() {
		return p, nil
	}
	if p.Build != nil {
		req := buildRequest(p.Build)
		req.Progress, req.Out, req.QuietIfCached = o.Progress, o.Out, true
		if _, err := Build(ctx, m.cfg, p.Caller(), req, o.Wait); err != nil {
			return nil, fmt.Errorf("build %s: %w", p.Build.Image, err)
		}
	}
	if p.Pull != "" {
		if _, err := m.pull(ctx, p.Pull, p.Caller()); err != nil {
			return nil, err
		}
	}
	image := p.Image
	if p.BaseRef != "" {
		image = p.BaseRef
	}
	agent, err := m.Image(ctx, image)
	if err != nil {
		return nil, err
	}
	if !p.Proxy.Pull {
		return p.WithImages(agent, nil)
	}
	if _, err := m.pull(ctx, p.Proxy.Image, p.Caller()); err != nil {
		return nil, proxyHint(ctx, p.Proxy, err)
	}
	proxy, err := m.Image(ctx, p.Proxy.Image)
	if err == nil && p.Proxy.Digest != "" && proxy.Digest != p.Proxy.Digest {
		err = fmt.Errorf("digest mismatch: got %s, want %s", proxy.Digest, p.Proxy.Digest)
	}
	if err != nil {
		return nil, proxyHint(ctx, p.Proxy, err)
	}
	return p.WithImages(agent, &proxy)
}

func buildRequest(b *plan.Build) Request {
	req := Request{Network: Network{Host: b.HostNetwork, Allow: b.Allow}}
	req.Request = buildkit.Request{
		Names: []string{b.Image}, Context: b.Context, Dockerfile: b.Dockerfile, Target: b.Target,
		Args: b.Args, Labels: b.Labels(),
	}
	if b.Default {
		req.Dockerfile, req.Text = "bottle's own Dockerfile", agent.Dockerfile(agents.Get(b.Kind))
	}
	for _, s := range b.Secrets {
		req.Secrets = append(req.Secrets, Secret{ID: s.ID, Value: func() []byte { return []byte(s.Value.Reveal()) }})
	}
	return req
}

// proxyHint adds a hint to an error about a proxy's image, unless the user has cancelled.
func proxyHint(ctx context.Context, p plan.Proxy, err error) error {
	if ctx.Err() != nil {
		return err
	}
	return p.Hint(err)
}
