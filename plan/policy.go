package plan

import (
	"fmt"
	"slices"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/policy"
	"github.com/bot-bottle/bottle/provision"
)

// applyPolicy adds the administrator's policy to the plan: hosts that no bottle reaches
// are denied, which also makes exceptions from broader entries.
func (p *preparation) applyPolicy() {
	rules := p.spec.Rules
	p.plan.rules = rules
	if file := rules.Policy(); file != nil && file.Path != "" {
		p.plan.Policy = &Policy{Path: file.Path, SHA256: file.SHA256, Bounds: []policy.Bound{}}
	}
	never := egress.Expand(rules.Never())
	if len(never) == 0 {
		return
	}
	deny := slices.Concat(p.plan.Egress.Deny, never)
	slices.Sort(deny)
	p.plan.Egress.Deny = slices.Compact(deny)
	p.bound("egress.never", "denies %s", plural(len(never), "host"))
}

func plural(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

func (p *preparation) bound(key, format string, args ...any) {
	if p.plan.Policy != nil {
		p.plan.Policy.Bounds = append(p.plan.Policy.Bounds, policy.Bound{Key: key, Effect: fmt.Sprintf(format, args...)})
	}
}

// checkPolicy checks the prepared plan against the administrator's policy. Parts whose
// preparation has failed are not checked.
func (p *preparation) checkPolicy() error {
	rules := p.spec.Rules
	if rules == nil {
		return nil
	}
	if p.plan.Policy != nil {
		p.plan.Policy.Bounds = append(p.plan.Policy.Bounds, p.limitBounds...)
	}
	var problems hint.Problems
	problems.Add(rules.Runtime(p.plan.Runtime))
	if p.policyErr == nil {
		// Without the exceptions that applyPolicy has added.
		problems.Add(rules.Egress(entriesOf(p.requested, p.bottle.SSH), p.spec.Learn))
	}
	problems.Add(p.checkSecrets())
	if p.plan.Build != nil {
		problems.Add(rules.Build(p.plan.Build.HostNetwork, p.plan.Build.Allow))
	}
	if p.plan.Workspace != nil {
		problems.Add(rules.KeptWork())
	}
	problems.Add(p.plan.checkImages())
	return problems.Err()
}

// checkImages checks the images of the agent and of the proxy. It is repeated when they
// were pulled or built.
func (p *Plan) checkImages() error {
	var problems hint.Problems
	ref := p.Image
	if p.BaseRef != "" {
		ref = p.BaseRef
	}
	if ref != "" {
		problems.Add(p.rules.Image(ref, p.ImageDigest))
	}
	if p.Proxy.Kind == manifest.ProxyBuiltin || p.Proxy.Image != "" {
		problems.Add(p.rules.Proxy(p.Proxy.Kind, p.Proxy.Image, p.Proxy.Digest))
	}
	return problems.Err()
}

// CheckImage checks that an image is still the one of the plan, if the policy names
// digests: its name may refer to another one by now.
func (p *Plan) CheckImage(ref, digest string) error { return p.rules.Image(ref, digest) }

// secretSources maps the sources of variables to those of the policy.
var secretSources = map[string]string{
	manifest.SourceForwarded: policy.SecretEnvironment, manifest.SourcePrompt: policy.SecretPrompt,
	manifest.SourceFile: policy.SecretFile, provision.SourceArgument: policy.SecretCommandLine,
	provision.SourceLogin: policy.SecretFile, provision.SourceLoginFile: policy.SecretFile, manifest.SourceCommand: policy.SecretCommand,
	provision.SourceEnvFile: policy.SecretCommandLine, provision.SourceDescriptor: policy.SecretCommandLine,
}

// SecretSource returns the policy's name for where a variable comes from; empty: nowhere
// that a policy bounds.
func SecretSource(v provision.Variable) string { return secretSources[v.Source] }

func (p *preparation) checkSecrets() error {
	rules := p.spec.Rules
	var problems hint.Problems
	for _, v := range p.plan.Secrets() {
		if source := SecretSource(v); source != "" {
			problems.Add(rules.Secret(source, v.Name))
		}
	}
	for _, path := range p.plan.EnvPipes {
		problems.Add(rules.Secret(policy.SecretCommandLine, path))
	}
	for _, h := range p.bottle.SSH {
		source := policy.SecretSSHAgent
		if h.Mode == manifest.SSHCopy {
			source = policy.SecretSSHCopy
		}
		problems.Add(rules.Secret(source, h.Host))
	}
	if p.plan.Build != nil {
		for _, s := range p.plan.Build.Secrets {
			problems.Add(rules.Secret(policy.SecretBuild, s.ID))
		}
	}
	return problems.Err()
}
