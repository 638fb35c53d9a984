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

// Prepare resolves a spec to a plan. It makes nothing, and finds everything
// that can be wrong before something is made: the error is Problems when there
// is more than one.
func Prepare(ctx context.Context, s Spec, h Host) (*Plan, error) {
	m, err := s.Manifest()
	if err != nil {
		return nil, err
	}
	agent, bottle, err := m.Lookup(s.Agent)
	if err != nil {
		return nil, err
	}
	p := &Preparation{
		spec: s, Host: h, agent: agent, bottle: bottle,
		Plan: &Plan{
			Agent: s.Agent, Bottle: agent.Bottle, Manifest: m.Path, Created: time.Now(),
			Egress: bottle.Egress.Sorted(),
			Prompt: agent.Prompt, PromptBytes: len(agent.Prompt), Skills: []string{}, SSH: []manifest.SSHHost{},
			Warnings: []string{},
		},
	}
	if err := p.run(ctx); err != nil {
		return nil, err
	}
	return p.Plan, nil
}

// Manifest finds, reads and checks the manifest that is meant.
func (s Spec) Manifest() (*manifest.Manifest, error) {
	path := s.ManifestPath
	if path == "" {
		var err error
		if path, err = manifest.Find(s.Caller.WorkDir, s.Caller.Home); err != nil {
			return nil, err
		}
	}
	return manifest.Load(path)
}

// getenv returns a variable of the caller's, or nothing.
func (s Spec) getenv(name string) string {
	v, _ := s.Caller.Getenv(name)
	return v
}

type Preparation struct {
	spec   Spec
	Host   Host
	agent  *manifest.Agent
	bottle *manifest.Bottle
	Plan   *Plan

	gitWarning    string
	skillWarnings []string
}

// run asks the host at once for what takes time, and decides the rest
// meanwhile. Each part writes to fields of its own.
func (p *Preparation) run(ctx context.Context) error {
	p.runtimeAndProxy()
	parts := []func(context.Context) error{
		p.name, p.image, p.runtime, p.network, p.proxy, p.policy, p.env, p.skills, p.ssh, p.git, p.limits,
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

func (p *Preparation) runtimeAndProxy() {
	p.Plan.Runtime, p.Plan.Proxy.Kind, p.Plan.Learn = DefaultRuntime, manifest.DefaultProxy, p.spec.Learn
	if p.bottle.Proxy.Kind != "" {
		p.Plan.Proxy.Kind = p.bottle.Proxy.Kind
	}
	if p.spec.Runtime != "" {
		p.Plan.Runtime = p.spec.Runtime
	}
	if p.spec.Proxy != "" {
		p.Plan.Proxy.Kind = p.spec.Proxy
	}
}

func (p *Preparation) name(ctx context.Context) error {
	taken, err := p.Host.Taken(ctx)
	if err != nil {
		return err
	}
	name := p.spec.Name
	if name == "" {
		name = p.spec.getenv("CLAUDE_BOTTLE_CONTAINER")
	}
	if name != "" {
		p.Plan.Name, p.Plan.Pinned = name, true
		return names.CheckPinned(name, taken)
	}
	p.Plan.Name, err = names.Free(p.spec.Agent, taken)
	return err
}

// image decides which image runs and which command in it.
func (p *Preparation) image(ctx context.Context) error {
	base, source := p.spec.getenv("CLAUDE_BOTTLE_IMAGE"), "CLAUDE_BOTTLE_IMAGE"
	if base == "" {
		base, source = p.bottle.Image, "the manifest"
	}
	if base == "" {
		base, source = manifest.DefaultImage, "the default"
	}
	ref, err := imageref.Normalize(base)
	if err != nil {
		return fmt.Errorf("the image %q from %s: %w", base, source, err)
	}
	looked := ref
	if p.spec.Cwd {
		p.Plan.BaseRef = ref
		if ref, err = p.derived(); err != nil {
			return err
		}
		if err := p.cwd(); err != nil {
			return err
		}
	}
	p.Plan.Image, p.Plan.caller = ref, p.spec.Caller
	p.Plan.command, p.Plan.args = p.agent.Command, p.spec.Args
	info, known, err := p.lookUp(ctx, looked, source == "the manifest")
	if err != nil {
		return err
	}
	p.Plan.User = info.User
	if b := p.Plan.Build; b != nil && !b.Default && b.Reason == BuildMissing {
		known = false
	}
	if !known && len(p.Plan.command) == 0 {
		p.Plan.Command, p.Plan.ImageCommand = []string{}, true
		return nil
	}
	return p.Plan.setCommand(info)
}

// derived names the image that holds the working directory.
func (p *Preparation) derived() (string, error) {
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
		return "", fmt.Errorf("the derived image %q: %w", name, err)
	}
	return ref, nil
}

func imageHint(ref string, err error) error {
	if !errors.Is(err, ErrImageMissing) {
		return err
	}
	return &hint.Error{
		Err:  fmt.Errorf("no image %s in containerd's store: %w", imageref.Familiar(ref), err),
		Hint: "put it there: bottle pull " + imageref.Familiar(ref),
	}
}

func (p *Preparation) runtime(ctx context.Context) error {
	known := []string{Runsc, Runc}
	if !slices.Contains(known, p.Plan.Runtime) {
		return &hint.Error{Err: fmt.Errorf("no runtime %q", p.Plan.Runtime), Hint: "choose --runtime " + strings.Join(known, " or ")}
	}
	return p.Host.Runtime(ctx, p.Plan.Runtime)
}

func (p *Preparation) network(ctx context.Context) (err error) {
	p.Plan.Network, err = p.Host.Network(ctx)
	return err
}

func (p *Preparation) policy(context.Context) error {
	if _, err := p.Plan.EntriesFor(p.bottle.SSH).Policy(); err != nil {
		return fmt.Errorf("egress: %w", err)
	}
	return nil
}

// entriesFor is the policy as the proxy reads it.
func (p *Plan) EntriesFor(ssh []manifest.SSHHost) egress.Entries {
	e := egress.Entries{Allow: p.Egress.Allow, AllowPrivate: p.Egress.AllowPrivate}
	for _, h := range ssh {
		e.SSH = append(e.SSH, h.Destination())
	}
	return e
}

func (p *Preparation) env(context.Context) (err error) {
	r := &envResolver{caller: p.spec.Caller, noInput: p.spec.NoInput, manifest: p.Plan.Manifest, vars: []provision.Variable{}}
	token := p.spec.getenv(callerToken) != ""
	if p.spec.ForwardToken != nil {
		token = *p.spec.ForwardToken
	}
	p.Plan.Env, err = r.resolve(p.bottle.Env, p.spec.EnvFiles, p.spec.Env, token)
	return err
}

func (p *Preparation) limits(context.Context) error {
	p.Plan.Limits = p.bottle.Limits.OrDefault()
	return nil
}

func (p *Preparation) warn() {
	plan := p.Plan
	warn := func(format string, args ...any) { plan.Warnings = append(plan.Warnings, fmt.Sprintf(format, args...)) }
	if plan.Runtime == Runc {
		warn("runtime runc: the agent shares the host's kernel, and nothing but the kernel's own checks keeps it in; gVisor's isolation is lost, and nothing bounds what it writes to the disk")
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

func (p *Preparation) skills(context.Context) error {
	s, err := provision.ReadSkills(p.spec.Caller, p.agent.Skills)
	p.Plan.Skills, p.Plan.skills, p.skillWarnings = s.Names, s.Files, s.Warnings
	return err
}

func (p *Preparation) ssh(context.Context) (err error) {
	p.Plan.ssh, err = provision.ResolveSSH(p.spec.Caller, filepath.Dir(p.Plan.Manifest), p.bottle.SSH, p.spec.NoInput)
	for _, a := range p.Plan.ssh {
		p.Plan.SSH = append(p.Plan.SSH, a.Host)
	}
	return err
}

// git takes the identity from the manifest. What that leaves out is the invoking
// user's, as git reports it in their working directory.
func (p *Preparation) git(ctx context.Context) error {
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
		p.Plan.Git = &g
	}
	return nil
}
