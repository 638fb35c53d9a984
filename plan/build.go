package plan

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/agents"
	"github.com/bot-bottle/bottle/images/agent"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/manifest"
)

// Reasons for a Build.
const (
	BuildMissing = "missing" // the image does not exist
	BuildChanged = "changed" // it was built from another version of bottle's Dockerfile
	BuildInputs  = "inputs"  // it exists; BuildKit rebuilds the steps whose inputs changed
)

// Build describes the image that a launch builds first, its source, and the reason.
type Build struct {
	Image   string `json:"image"` // normalised
	Reason  string `json:"reason"`
	Default bool   `json:"default"` // the default agent image, from bottle's Dockerfile
	// Context, Dockerfile and Target come from the manifest; the paths are absolute.
	Context    string            `json:"context,omitempty"`
	Dockerfile string            `json:"dockerfile,omitempty"`
	Target     string            `json:"target,omitempty"`
	Args       map[string]string `json:"args,omitempty"`
	Secrets    []BuildSecret     `json:"secrets,omitempty"` // sorted by ID
	// HostNetwork: steps use the host's network. Allow lists what they reach through
	// their proxy otherwise; nil: all public hosts.
	HostNetwork bool     `json:"host_network,omitempty"`
	Allow       []string `json:"allow,omitempty"`

	// Kind is that of the agent in a default image.
	Kind string `json:"kind,omitempty"`

	labels map[string]string
}

// defaultRef returns the default image of the agent's kind, normalised; empty if there
// is none.
func (p *preparation) defaultRef() string {
	if p.plan.kind.Image == nil {
		return ""
	}
	return "docker.io/library/" + p.plan.kind.DefaultImage()
}

// imageOrBuild looks up an image and decides whether it is built first. For an image
// that will be built it returns what is known before the build.
func (p *preparation) imageOrBuild(ctx context.Context, ref string, fromManifest bool) (ImageInfo, error) {
	info, err := p.host.Image(ctx, ref)
	missing := errors.Is(err, ErrImageMissing)
	if err != nil && !missing {
		return info, err
	}
	switch {
	case fromManifest && p.bottle.Build != nil:
		return info, p.planOwnBuild(ref, missing)
	case ref == p.defaultRef() && (missing || outdated(info, p.plan.kind, defaultBuild(p.bottle).Args)):
		return ImageInfo{Ref: ref, User: agent.User, Cmd: p.plan.kind.Command}, p.planDefaultBuild(ref, missing)
	}
	return info, err
}

// outdated reports whether an image was built from another version of bottle's
// Dockerfile, or with other arguments. An image without the label was not built by
// bottle and is never replaced.
func outdated(info ImageInfo, k *agents.Kind, args map[string]string) bool {
	hash := info.Labels[agent.Label]
	return hash != "" && hash != agent.Hash(k, args)
}

// defaultBuild returns the bottle's build settings for the default image, whose
// Dockerfile and name are fixed.
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
	b := &Build{
		Image: ref, Reason: reason, Default: true,
		Kind:        p.plan.kind.Name,
		HostNetwork: cfg.HostNetwork, Allow: cfg.Allow,
		Args: maps.Clone(cfg.Args), labels: map[string]string{agent.Label: agent.Hash(p.plan.kind, cfg.Args)},
	}
	p.plan.Build = b
	return p.buildSecrets(b, cfg)
}

// buildSecrets reads the secrets that are available to the steps of a build.
func (p *preparation) buildSecrets(b *Build, cfg manifest.Build) error {
	var problems hint.Problems
	for _, id := range slices.Sorted(maps.Keys(cfg.Secrets)) {
		s, err := p.buildSecret(id, cfg.Secrets[id], filepath.Dir(p.plan.Manifest))
		problems.Add(err)
		b.Secrets = append(b.Secrets, s)
	}
	return problems.Err()
}

// planOwnBuild resolves the manifest's build. BuildKit's cache decides which steps
// run: a build without changes takes a tenth of a second.
func (p *preparation) planOwnBuild(ref string, missing bool) error {
	cfg, dir := p.bottle.Build, filepath.Dir(p.plan.Manifest)
	b := &Build{Image: ref, Reason: BuildInputs, Target: cfg.Target, HostNetwork: cfg.HostNetwork, Allow: cfg.Allow}
	if missing {
		b.Reason = BuildMissing
	}
	b.Context = p.spec.Caller.Path(orDefault(cfg.Context, "."), dir)
	b.Dockerfile = p.spec.Caller.Path(orDefault(cfg.Dockerfile, "Dockerfile"), b.Context)
	if cfg.Dockerfile != "" {
		b.Dockerfile = p.spec.Caller.Path(cfg.Dockerfile, dir)
	}
	var problems hint.Problems
	if fi, err := p.spec.Caller.Stat(b.Context); err != nil || !fi.IsDir() {
		problems.Add(&hint.Error{Err: fmt.Errorf("the build context %s is not a directory", b.Context), Hint: "set context in the bottle's build"})
	} else if fi, err := p.spec.Caller.Stat(b.Dockerfile); err != nil || !fi.Mode().IsRegular() {
		problems.Add(&hint.Error{Err: fmt.Errorf("missing Dockerfile %s", b.Dockerfile), Hint: "set dockerfile in the bottle's build"})
	}
	b.Args = maps.Clone(cfg.Args)
	problems.Add(p.buildSecrets(b, *cfg))
	p.plan.Build = b
	return problems.Err()
}

// buildSecret reads a secret from a private file of the caller, or from the variable
// NAME for "env:NAME".
func (p *preparation) buildSecret(id, from, dir string) (BuildSecret, error) {
	s := BuildSecret{ID: id, From: from}
	if p.spec.NamesOnly {
		return s, nil
	}
	if name, ok := strings.CutPrefix(from, SecretFromEnv); ok {
		value, set := p.spec.Caller.Getenv(name)
		if !set {
			return s, &hint.Error{Err: fmt.Errorf("build secret %s: the variable %s is not set", id, name), Hint: "set and export it"}
		}
		s.Value = secret.New(value)
		return s, nil
	}
	s.From = p.spec.Caller.Path(from, dir)
	data, err := p.spec.Caller.ReadPrivate(s.From, maxBuildSecret)
	if err != nil {
		return s, fmt.Errorf("build secret %s: %w", id, err)
	}
	s.Value = secret.New(string(data))
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

// SecretFromEnv precedes the name of a variable that is the source of a build secret.
const SecretFromEnv = "env:"

// BuildSecret is a secret that the steps of a build may read.
type BuildSecret struct {
	ID string `json:"id"`
	// From is the caller's file, an absolute path, or SecretFromEnv and the name of the
	// caller's variable.
	From  string       `json:"from"`
	Value secret.Value `json:"-"`
}

// Labels returns the labels of the image.
func (b *Build) Labels() map[string]string { return maps.Clone(b.labels) }
