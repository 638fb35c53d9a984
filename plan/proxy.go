package plan

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/distribution/reference"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/manifest"
)

// DefaultPipelock is pipelock's image if the manifest names none.
const DefaultPipelock = egress.PipelockImage + ":" + egress.DefaultPipelockVersion

const useBuiltin = "choose the built-in proxy with --proxy builtin"

// proxy resolves the proxy that enforces the policy. There is no fallback to another
// proxy.
func (p *preparation) proxy(ctx context.Context) error {
	if err := checkProxyMemory(p.plan.Proxy); err != nil {
		return err
	}
	switch p.plan.Proxy.Kind {
	case manifest.ProxyBuiltin:
		return nil
	case manifest.ProxyPipelock:
		if p.spec.Learn {
			return &hint.Error{Err: errors.New("pipelock cannot learn a policy"), Hint: useBuiltin}
		}
		return p.pipelock(ctx)
	}
	return &hint.Error{Err: fmt.Errorf("unknown proxy %q", p.plan.Proxy.Kind), Hint: "choose --proxy pipelock or --proxy builtin"}
}

// checkProxyMemory refuses a limit below the default, with which an agent could end its
// proxy: the bounds of what a proxy buffers fit the default.
func checkProxyMemory(p Proxy) error {
	least := egress.BuiltinMemory
	if p.Kind == manifest.ProxyPipelock {
		least = egress.PipelockMemory
	}
	if p.Memory == 0 || p.Memory >= least {
		return nil
	}
	return &hint.Error{
		Err:  fmt.Errorf("invalid memory of the proxy: %d MiB (min %d MiB for %s)", p.Memory>>20, least>>20, p.Kind),
		Hint: "raise or remove proxy.memory in the manifest",
	}
}

func (p *preparation) pipelock(ctx context.Context) error {
	name := cmp.Or(p.bottle.Proxy.Image, DefaultPipelock)
	named, version, err := pipelockImage(p.bottle.Proxy)
	if err != nil {
		return err
	}
	p.plan.Proxy.Version = version.String()
	if p.policyErr != nil {
		return nil //nolint:nilerr // the step for the policy reports it
	}
	if err := p.plan.policy.CheckPipelock(version); err != nil {
		return err
	}
	_, p.plan.Proxy.Pinned = named.(reference.Digested)
	info, err := ProxyImage(ctx, p.host, named)
	if errors.Is(err, ErrImageMissing) && p.spec.Pull != PullNever {
		p.plan.Proxy.Pull = true
		p.plan.Proxy.Image, p.plan.Proxy.Digest = pullName(named)
		return nil
	}
	if errors.Is(err, ErrImageMissing) {
		return &hint.Error{
			Err:  fmt.Errorf("proxy image %s: %w", name, err),
			Hint: "pull it into containerd's store, or " + useBuiltin,
		}
	}
	if err != nil {
		return err
	}
	p.plan.Proxy.Image, p.plan.Proxy.Digest = info.Ref, info.Digest
	return nil
}

// pullName returns the reference to pull and the digest that the image must have. If
// the name has both a tag and a digest, the tag is ignored.
func pullName(named reference.Named) (ref, digest string) {
	digested, ok := named.(reference.Digested)
	if !ok {
		return reference.TagNameOnly(named).String(), ""
	}
	digest = digested.Digest().String()
	return reference.TrimNamed(named).String() + "@" + digest, digest
}

// ProxyImage finds the image of a proxy by its name, with or without a digest. An
// image with a digest may be stored under its tag, and must then have that digest.
// The error wraps ErrImageMissing if the host does not have it.
func ProxyImage(ctx context.Context, h Host, named reference.Named) (ImageInfo, error) {
	digested, ok := named.(reference.Digested)
	if !ok {
		return h.Image(ctx, reference.TagNameOnly(named).String())
	}
	byDigest, err := reference.WithDigest(reference.TrimNamed(named), digested.Digest())
	if err != nil {
		return ImageInfo{}, fmt.Errorf("proxy image %s: %w", named, err)
	}
	info, err := h.Image(ctx, byDigest.String())
	tagged, hasTag := named.(reference.Tagged)
	if errors.Is(err, ErrImageMissing) && hasTag {
		var byTag reference.NamedTagged
		if byTag, err = reference.WithTag(reference.TrimNamed(named), tagged.Tag()); err != nil {
			return ImageInfo{}, fmt.Errorf("proxy image %s: %w", named, err)
		}
		info, err = h.Image(ctx, byTag.String())
	}
	if err == nil && info.Digest != digested.Digest().String() {
		err = &hint.Error{
			Err:  fmt.Errorf("proxy image %s has another digest in containerd's store: %s", named, info.Digest),
			Hint: "pull it again, or correct the digest in the manifest",
		}
	}
	return info, err
}

// pipelockImage returns the image of pipelock and the version in it.
func pipelockImage(p manifest.Proxy) (reference.Named, egress.PipelockVersion, error) {
	name := cmp.Or(p.Image, DefaultPipelock)
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, egress.PipelockVersion{}, fmt.Errorf("proxy image %q: %w", name, err)
	}
	version, err := versionOf(named, p.Version)
	if err != nil {
		return nil, version, &hint.Error{Err: fmt.Errorf("proxy image %s: %w", name, err), Hint: hint.Of(err) + ", or " + useBuiltin}
	}
	return named, version, nil
}

// versionOf returns the version of pipelock in an image: the stated one, if there is
// one, or the one in the image's tag. It is never guessed, because the configuration
// depends on it.
func versionOf(named reference.Named, stated string) (egress.PipelockVersion, error) {
	if stated != "" {
		return egress.ParsePipelockVersion(stated)
	}
	tag := ""
	if tagged, ok := named.(reference.Tagged); ok {
		tag = tagged.Tag()
	}
	return egress.PipelockVersionOfTag(tag)
}

// warnProxy reports the drawbacks of the chosen proxy.
func (p *preparation) warnProxy(warn func(format string, args ...any)) {
	plan := p.plan
	if plan.Learn {
		warn("NOTHING IS BLOCKED: THE AGENT REACHES EVERY PUBLIC HOST, and what the policy would have refused is only logged (--learn)")
	}
	if plan.Proxy.Kind != manifest.ProxyPipelock {
		return
	}
	if named, _, err := pipelockImage(p.bottle.Proxy); err == nil && !isPipelockRelease(named) {
		warn("the proxy's image %s is not an official release of pipelock: whoever made it decides what leaves the bottle and what is logged", named)
	}
	if plan.Proxy.Pull && !plan.Proxy.Pinned {
		warn("the proxy's image is not pinned, and is pulled: name it with its digest, %s@sha256:…, under proxy: in the manifest", plan.Proxy.Image)
	} else if plan.Proxy.Image != "" && !plan.Proxy.Pinned {
		warn("the proxy's image is not pinned: name it with its digest, %s@%s, under proxy: in the manifest", plan.Proxy.Image, plan.Proxy.Digest)
	}
	if v, err := egress.ParsePipelockVersion(plan.Proxy.Version); err == nil && !v.WasRun() {
		warn("bottle was not tested with pipelock %s: its configuration follows pipelock's documentation", v)
	}
	if p.policyErr == nil && plan.policy.MixedPorts() {
		warn("pipelock does not check ports: each allowed host can be reached on every port that any entry allows")
	}
	if http := plan.policy.PlainHTTP(); len(http) > 0 {
		warn("plain HTTP under pipelock (%s): compressed responses are refused, and those over %d MB are cut although their status is 200; prefer https or the built-in proxy", strings.Join(http, ", "), egress.PipelockMaxResponse)
	}
}

// isPipelockRelease reports whether an image has one of the names under which pipelock
// is published, and a digest or the version of a release.
func isPipelockRelease(named reference.Named) bool {
	if name := named.Name(); name != egress.PipelockImage && name != egress.PipelockOldImage {
		return false
	}
	if _, digested := named.(reference.Digested); digested {
		return true
	}
	_, err := versionOf(named, "")
	return err == nil
}

// PipelockConfig renders pipelock's configuration for an agent's policy.
func PipelockConfig(m *manifest.Manifest, agent string) ([]byte, error) {
	a, b, err := m.Lookup(agent)
	if err != nil {
		return nil, err
	}
	requested, _ := a.Egress(b, nil)
	policy, err := entriesOf(requested, b.SSH).Policy()
	if err != nil {
		return nil, fmt.Errorf("egress: %w", err)
	}
	_, version, err := pipelockImage(b.Proxy)
	if err != nil {
		return nil, err
	}
	return policy.Render(version.String())
}

// Hint adds a hint to an error about a proxy from an image. Bottle does not choose another
// proxy itself.
func (p Proxy) Hint(err error) error {
	if err == nil || p.Kind != manifest.ProxyPipelock {
		return err
	}
	return &hint.Error{
		Err:  fmt.Errorf("proxy %s: %w", p.Image, err),
		Hint: "set a working pipelock image under proxy: in the manifest, or use --proxy builtin",
	}
}
