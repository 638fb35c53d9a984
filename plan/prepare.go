package plan

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/imageref"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/provision"
)

// Runtimes of the agent's task, by the names of their programs.
const (
	Runsc = "runsc" // gVisor
	Runc  = "runc"

	DefaultRuntime = Runsc
)

// Prepare resolves a spec to a plan. It creates nothing and finds all errors that can
// be found before something is created. The error is a hint.Problems if there is more
// than one.
func Prepare(ctx context.Context, s Spec, h Host) (*Plan, error) {
	m, err := s.Manifest()
	if err != nil {
		return nil, err
	}
	agent, bottle, err := m.Lookup(s.Agent)
	if err != nil {
		return nil, err
	}
	p := &preparation{
		spec: s, host: h, agent: agent, bottle: bottle,
		plan: &Plan{
			Agent: s.Agent, Bottle: agent.Bottle, Manifest: s.Caller.Abs(m.Path), Created: time.Now(),
			Egress: bottle.Egress.Expand(),
			Prompt: agent.Prompt, PromptBytes: len(agent.Prompt), Skills: []string{}, SSH: []manifest.SSHHost{},
			Warnings: []string{},
		},
	}
	p.plan.entries = entriesOf(p.plan.Egress, bottle.SSH)
	p.plan.policy, p.policyErr = p.plan.entries.Policy()
	if err := p.run(ctx); err != nil {
		return nil, err
	}
	return p.plan, nil
}

// Manifest finds, reads and validates the manifest.
func (s Spec) Manifest() (*manifest.Manifest, error) {
	if s.Loaded != nil {
		return s.Loaded, nil
	}
	path := s.ManifestPath
	if path == "" {
		var err error
		if path, err = manifest.Find(s.Caller); err != nil {
			return nil, err
		}
		if err := manifest.CheckOwner(path, s.Caller); err != nil {
			return nil, err
		}
	}
	return manifest.Load(path, s.Caller)
}

// getenv returns a variable of the caller; empty if it is not set.
func (s Spec) getenv(name string) string {
	v, _ := s.Caller.Getenv(name)
	return v
}

type preparation struct {
	spec   Spec
	host   Host
	agent  *manifest.Agent
	bottle *manifest.Bottle
	plan   *Plan
	// policyErr is the error of the plan's policy, which is parsed once.
	policyErr error

	gitWarning    string
	skillWarnings []string
}

// run prepares the parts of the plan concurrently, because some of them query the host.
// Each part writes to different fields.
func (p *preparation) run(ctx context.Context) error {
	p.runtimeAndProxy()
	parts := []func(context.Context) error{
		p.name, p.image, p.runtime, p.network, p.proxy, p.policy, p.env, p.skills, p.ssh, p.git, p.limits, p.credentials,
	}
	errs := make([]error, len(parts))
	var wg sync.WaitGroup
	for i, part := range parts {
		wg.Go(func() { errs[i] = part(ctx) })
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return err
	}
	var problems hint.Problems
	for _, err := range errs {
		problems.Add(err)
	}
	p.warn()
	return problems.Err()
}

func (p *preparation) runtimeAndProxy() {
	p.plan.Runtime, p.plan.Proxy.Kind, p.plan.Learn = DefaultRuntime, manifest.DefaultProxy, p.spec.Learn
	p.plan.Proxy.Memory = p.bottle.Proxy.Memory
	if p.bottle.Proxy.Kind != "" {
		p.plan.Proxy.Kind = p.bottle.Proxy.Kind
	}
	if p.spec.Runtime != "" {
		p.plan.Runtime = p.spec.Runtime
	}
	if p.spec.Proxy != "" {
		p.plan.Proxy.Kind = p.spec.Proxy
	}
}

func (p *preparation) name(ctx context.Context) error {
	taken, err := p.host.Taken(ctx)
	if err != nil {
		return err
	}
	name := p.spec.Name
	if name == "" {
		name = p.spec.getenv("CLAUDE_BOTTLE_CONTAINER")
	}
	if name != "" {
		p.plan.Name, p.plan.Pinned = name, true
		return names.CheckPinned(name, taken)
	}
	p.plan.Name, err = names.Free(p.spec.Agent, taken)
	return err
}

// image decides on the image and the command.
func (p *preparation) image(ctx context.Context) error {
	base, source := p.spec.getenv("CLAUDE_BOTTLE_IMAGE"), "CLAUDE_BOTTLE_IMAGE"
	if base == "" {
		base, source = p.bottle.Image, "the manifest"
	}
	if base == "" {
		base, source = manifest.DefaultImage, "the default"
	}
	ref, err := imageref.Normalize(base)
	if err != nil {
		return fmt.Errorf("image %q from %s: %w", base, source, err)
	}
	looked := ref
	if p.spec.Cwd {
		p.plan.BaseRef = ref
		if ref, err = p.derived(); err != nil {
			return err
		}
		if err := p.cwd(); err != nil {
			return err
		}
	}
	p.plan.Image, p.plan.caller = ref, p.spec.Caller
	p.plan.command, p.plan.args = p.agent.Command, p.spec.Args
	info, known, err := p.lookUp(ctx, looked, source == "the manifest")
	if err != nil {
		return err
	}
	p.plan.User = info.User
	if b := p.plan.Build; b != nil && !b.Default && b.Reason == BuildMissing {
		known = false
	}
	if !known && len(p.plan.command) == 0 {
		p.plan.Command, p.plan.ImageCommand = []string{}, true
		return nil
	}
	return p.plan.setCommand(info)
}

// derived returns the name of the image that contains the working directory.
func (p *preparation) derived() (string, error) {
	name := p.spec.getenv("CLAUDE_BOTTLE_DERIVED_IMAGE")
	if name == "" {
		slug, err := names.Slug(p.spec.Agent)
		if err != nil {
			return "", err
		}
		name = "claude-bottle:cwd-" + slug
	}
	ref, err := imageref.Normalize(name)
	if err != nil {
		return "", fmt.Errorf("derived image %q: %w", name, err)
	}
	return ref, nil
}

func imageHint(ref string, err error) error {
	if !errors.Is(err, ErrImageMissing) {
		return err
	}
	return &hint.Error{
		Err:  fmt.Errorf("missing image %s: %w", imageref.Familiar(ref), err),
		Hint: "pull it: bottle pull " + imageref.Familiar(ref),
	}
}

func (p *preparation) runtime(ctx context.Context) error {
	known := []string{Runsc, Runc}
	if !slices.Contains(known, p.plan.Runtime) {
		return &hint.Error{Err: fmt.Errorf("unknown runtime %q", p.plan.Runtime), Hint: "choose --runtime " + strings.Join(known, " or ")}
	}
	err := p.host.Runtime(ctx, p.plan.Runtime)
	if err == nil && p.plan.Runtime != Runc {
		err = p.host.Runtime(ctx, Runc) // the proxy's
	}
	return err
}

func (p *preparation) network(ctx context.Context) (err error) {
	p.plan.Network, err = p.host.Network(ctx)
	return err
}

func (p *preparation) policy(context.Context) error {
	if p.policyErr != nil {
		return fmt.Errorf("egress: %w", p.policyErr)
	}
	return nil
}

// entriesOf returns the policy of a bottle as the proxy reads it.
func entriesOf(e manifest.Egress, ssh []manifest.SSHHost) egress.Entries {
	entries := egress.Entries{Allow: e.Allow, Deny: e.Deny, AllowPrivate: e.AllowPrivate}
	for _, h := range ssh {
		entries.SSH = append(entries.SSH, h.Destination())
	}
	return entries
}

// Entries returns the policy as the proxy reads it.
func (p *Plan) Entries() egress.Entries { return p.entries }

func (p *preparation) env(context.Context) (err error) {
	in := envInput{
		caller: p.spec.Caller, noInput: p.spec.NoInput, manifest: p.plan.Manifest,
		listed: p.bottle.Env, files: p.spec.EnvFiles, flags: parseEnvFlags(p.spec.Env), token: p.spec.getenv(callerToken) != "",
	}
	if p.spec.ForwardToken != nil {
		in.token = *p.spec.ForwardToken
	}
	if p.plan.EnvPipes = in.pipes(); len(p.plan.EnvPipes) > 0 {
		p.plan.env = in
	}
	p.plan.Env, err = in.resolve()
	return err
}

func (p *preparation) limits(context.Context) error {
	p.plan.Limits = p.bottle.Limits.OrDefault()
	return nil
}

func (p *preparation) warn() {
	plan := p.plan
	warn := func(format string, args ...any) { plan.Warnings = append(plan.Warnings, fmt.Sprintf(format, args...)) }
	if plan.Runtime == Runc {
		warn("runtime runc: the agent shares the host's kernel, without gVisor's isolation; its disk use has no limit; host users with the user ID of the agent can send it signals")
	}
	for _, w := range entryWarnings(entriesOf(p.bottle.Egress.Sorted(), p.bottle.SSH)) {
		warn("%s", w)
	}
	if plan.CredentialsUnknown {
		warn("--cwd copies more files than could be searched for credentials in %s: exclude credentials in .bottleignore", credentialsTimeout)
	}
	if len(plan.CredentialFiles) > 0 {
		warn("--cwd copies %s: exclude what the agent does not need in .bottleignore", credentialsText(plan.CredentialFiles))
	}
	p.warnProxy(warn)
	for _, w := range plan.Network.Warnings {
		warn("%s", w)
	}
	if p.gitWarning != "" {
		warn("%s", p.gitWarning)
	}
	for _, w := range append(p.skillWarnings, provision.SSHWarnings(plan.ssh)...) {
		warn("%s", w)
	}
}

func (p *preparation) skills(context.Context) error {
	s, err := provision.ReadSkills(p.spec.Caller, p.agent.Skills)
	p.plan.Skills, p.plan.skills, p.skillWarnings = s.Names, s.Files, s.Warnings
	return err
}

func (p *preparation) ssh(context.Context) (err error) {
	p.plan.ssh, err = provision.ResolveSSH(p.spec.Caller, filepath.Dir(p.plan.Manifest), p.bottle.SSH, p.spec.NoInput)
	for _, a := range p.plan.ssh {
		p.plan.SSH = append(p.plan.SSH, a.Host)
	}
	return err
}

// git takes the identity from the manifest, and a missing name or address from the
// invoking user's git configuration in the working directory.
func (p *preparation) git(ctx context.Context) error {
	g := manifest.Git{}
	if p.bottle.Git != nil {
		g = *p.bottle.Git
	}
	if g.Name == "" || g.Email == "" {
		own, err := provision.GitIdentity(ctx, p.spec.Caller)
		if err != nil {
			p.gitWarning = fmt.Sprintf("git has no identity in the bottle: %v; give the bottle git: {name: …, email: …}", err)
		}
		g.Name, g.Email = cmp.Or(g.Name, own.Name), cmp.Or(g.Email, own.Email)
	}
	if g != (manifest.Git{}) {
		p.plan.Git = &g
	}
	return nil
}
