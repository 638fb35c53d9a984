package bottle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/images/agent"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/manifest"
)

// Reasons of a BuildPlan.
const (
	BuildMissing = "missing" // there is no such image
	BuildChanged = "changed" // it was made from another Dockerfile of bottle's
	BuildInputs  = "inputs"  // it is there; what has changed since is built anew
)

// BuildPlan says which image a launch builds before all else, from what, and why.
type BuildPlan struct {
	Image   string `json:"image"` // normalised
	Reason  string `json:"reason"`
	Default bool   `json:"default"` // the default agent image, of a Dockerfile of bottle's own
	// Context, Dockerfile and Target are those of the manifest, paths made whole.
	Context    string   `json:"context,omitempty"`
	Dockerfile string   `json:"dockerfile,omitempty"`
	Target     string   `json:"target,omitempty"`
	Secrets    []string `json:"secrets,omitempty"` // their ids

	request BuildRequest
	// complete sets the command of an agent that has none of its own, once the
	// image is built.
	complete func(ImageInfo) error
}

// defaultRef is DefaultImage, normalised.
const defaultRef = "docker.io/library/" + manifest.DefaultImage

// imageOrBuild looks an image up and decides whether it is built first. Of one
// that is missing and will be built, what is known is returned.
func (p *preparation) imageOrBuild(ctx context.Context, ref string, fromManifest bool) (ImageInfo, error) {
	info, err := p.host.Image(ctx, ref)
	missing := errors.Is(err, ErrImageMissing)
	if err != nil && !missing {
		return info, err
	}
	switch {
	case fromManifest && p.bottle.Build != nil:
		return info, p.planOwnBuild(ref, missing)
	case ref == defaultRef && (missing || outdated(info, defaultBuild(p.bottle).Args)):
		return ImageInfo{Ref: ref, User: agent.User, Cmd: []string{agent.Command}}, p.planDefaultBuild(ref, missing)
	}
	return info, err
}

// outdated tells whether an image was built from another version of bottle's own
// Dockerfile, or with other arguments. One that has no label is somebody's own,
// and stays.
func outdated(info ImageInfo, args map[string]string) bool {
	hash := info.Labels[agent.Label]
	return hash != "" && hash != agent.Hash(args)
}

// defaultBuild is what the bottle's settings say of the build of the default
// image, which has a Dockerfile and a name already.
func defaultBuild(b *manifest.Bottle) manifest.Build {
	if b.Build == nil || b.Image != "" {
		return manifest.Build{}
	}
	return *b.Build
}

func (p *preparation) planDefaultBuild(ref string, missing bool) (err error) {
	reason := BuildChanged
	if missing {
		reason = BuildMissing
	}
	cfg := defaultBuild(p.bottle)
	b := &BuildPlan{Image: ref, Reason: reason, Default: true, request: BuildRequest{
		Names: []string{ref}, Dockerfile: "bottle's own Dockerfile", Text: agent.Dockerfile(),
		Args: maps.Clone(cfg.Args), Labels: map[string]string{agent.Label: agent.Hash(cfg.Args)},
	}}
	p.plan.Build = b
	return p.buildSecrets(b, cfg)
}

// buildSecrets reads the secrets that a build shows to its steps.
func (p *preparation) buildSecrets(b *BuildPlan, cfg manifest.Build) error {
	b.Secrets = slices.Sorted(maps.Keys(cfg.Secrets))
	var problems hint.Problems
	for _, id := range b.Secrets {
		s, err := p.buildSecret(id, cfg.Secrets[id], filepath.Dir(p.plan.Manifest))
		problems.Add(err)
		b.request.Secrets = append(b.request.Secrets, s)
	}
	return problems.Err()
}

// planOwnBuild resolves the manifest's build. BuildKit's cache decides what of it
// is to be done: a build of what has not changed takes a tenth of a second.
func (p *preparation) planOwnBuild(ref string, missing bool) error {
	cfg, dir := p.bottle.Build, filepath.Dir(p.plan.Manifest)
	b := &BuildPlan{Image: ref, Reason: BuildInputs, Target: cfg.Target}
	if missing {
		b.Reason = BuildMissing
	}
	b.Context = p.spec.Caller.Path(orDefault(cfg.Context, "."), dir)
	b.Dockerfile = p.spec.Caller.Path(orDefault(cfg.Dockerfile, "Dockerfile"), b.Context)
	if cfg.Dockerfile != "" {
		b.Dockerfile = p.spec.Caller.Path(cfg.Dockerfile, dir)
	}
	var problems hint.Problems
	if fi, err := os.Stat(b.Context); err != nil || !fi.IsDir() {
		problems.Add(fmt.Errorf("the build context %s is no folder; set context in the bottle's build", b.Context))
	} else if fi, err := os.Stat(b.Dockerfile); err != nil || !fi.Mode().IsRegular() {
		problems.Add(fmt.Errorf("there is no Dockerfile %s; set dockerfile in the bottle's build", b.Dockerfile))
	}
	b.request = BuildRequest{Names: []string{ref}, Context: b.Context, Dockerfile: b.Dockerfile, Target: cfg.Target, Args: maps.Clone(cfg.Args)}
	problems.Add(p.buildSecrets(b, *cfg))
	if len(p.agent.Command) == 0 {
		b.complete = p.command
	}
	p.plan.Build = b
	return problems.Err()
}

// decidesCommand tells whether the command shows only when the image is built.
func (b *BuildPlan) decidesCommand() bool {
	return b != nil && b.Reason == BuildMissing && b.complete != nil
}

// buildSecret is a file that is the caller's own, or, of "env:NAME", a variable.
func (p *preparation) buildSecret(id, from, dir string) (BuildSecret, error) {
	s := BuildSecret{ID: id}
	if name, ok := strings.CutPrefix(from, "env:"); ok {
		value, set := p.spec.Caller.Getenv(name)
		if !set {
			return s, fmt.Errorf("the build secret %s: %s is not set here, set it and run again", id, name)
		}
		s.Value = func() []byte { return []byte(value) }
		return s, nil
	}
	data, err := p.spec.Caller.ReadPrivate(p.spec.Caller.Path(from, dir), maxBuildSecret)
	if err != nil {
		return s, fmt.Errorf("the build secret %s: %w", id, err)
	}
	s.Value = func() []byte { return data }
	return s, nil
}

// maxBuildSecret is BuildKit's bound on a secret, in bytes.
const maxBuildSecret = 500 << 10

func orDefault(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

// Build makes the image that the plan says is built, if it says so, and
// completes the plan with what the image turned out to be. Progress goes to out, but
// nothing of a build that has nothing to do; dockerConfig is the folder of the
// caller's credentials for registries.
func (e *Engine) Build(ctx context.Context, p *Plan, progress string, out io.Writer, dockerConfig string, wait func()) error {
	b := p.Build
	if b == nil {
		return nil
	}
	req := b.request
	req.Progress, req.Out, req.QuietIfCached, req.DockerConfig = progress, out, true, dockerConfig
	if _, err := Build(ctx, e.cfg, req, wait); err != nil {
		return fmt.Errorf("build %s: %w", b.Image, err)
	}
	info, err := e.Image(ctx, b.Image)
	if err != nil {
		return err
	}
	p.User = info.User
	if b.complete != nil {
		return b.complete(info)
	}
	return nil
}
