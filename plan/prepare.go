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

	"github.com/bot-bottle/bottle/agents"
	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/imageref"
	"github.com/bot-bottle/bottle/internal/logins"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/internal/trust"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/policy"
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
			Kind: agent.Kind, Unattended: agent.Unattended, kind: agent.KindOf(), command: agent.CommandOfKind(),
			Pool: agent.Pool, Warm: agent.Warm && agent.Pool > 0, terminal: s.Terminal || s.Forms, MCP: agent.MCP, Prompt: agent.Prompt, PromptBytes: len(agent.Prompt), Skills: []string{}, SSH: []manifest.SSHHost{},
			Warnings: []string{},
		},
	}
	if text := m.Text.Reveal(); text != "" {
		p.plan.manifestSum = trust.Sum(text)
	}
	p.stored, p.storedErr = p.readLogin()
	p.requested, p.plan.KindHosts = agent.Egress(bottle, p.names)
	p.plan.Egress = p.requested.Expand()
	p.applyPolicy()
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
	// stored is the stored login of the agent; nil: none.
	stored    *logins.Login
	storedErr error
	// requested is the policy of the bottle and its agent's kind.
	requested manifest.Egress
	// quotaErr is the error if one more bottle is too many.
	quotaErr error
	// policyErr is the error of the plan's policy, which is parsed once.
	policyErr error

	limitBounds []policy.Bound

	gitWarning        string
	skillWarnings     []string
	workspaceWarnings []string
	// imageLogsIn: the image sets a variable with the agent's login.
	imageLogsIn bool
}

// run prepares the parts of the plan concurrently, because some of them query the host.
// Each part writes to different fields.
func (p *preparation) run(ctx context.Context) error {
	p.runtimeAndProxy()
	// A prepared bottle runs already, and the check takes longer than all others.
	checkLater, check := p.plan.Pool > 0 && !p.spec.NamesOnly, p.runtime
	if checkLater {
		check = func(context.Context) error { return nil }
	}
	parts := []func(context.Context) error{
		p.name, p.image, check, p.network, p.proxy, p.policy, p.env, p.loginFiles, p.skills, p.ssh, p.git, p.limits, p.credentials, p.workspace,
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
	p.login()
	problems.Add(p.checkInject())
	problems.Add(p.checkMCP())
	problems.Add(p.checkWarm())
	problems.Add(p.checkPolicy())
	if problems.Err() == nil {
		problems.Add(p.prepared(ctx))
	}
	if p.plan.Prepared == nil || p.plan.Prepared.Name == "" { // which is counted already
		problems.Add(p.quotaErr)
		if checkLater {
			problems.Add(p.runtime(ctx))
		}
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
	if p.spec.Resume != nil {
		p.plan.Runtime = p.spec.Resume.Runtime
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
	owner := p.spec.Caller.Owner()
	taken = names.VisibleNames(taken, owner)
	if r := p.spec.Resume; r != nil { // the stopped bottle has the name, and is counted
		p.plan.Name, p.plan.Pinned = r.Name, true
		return nil
	}
	p.quotaErr = p.spec.Rules.Bottles(1 + names.CountBottles(taken))
	name := p.spec.Name
	if name == "" {
		name = p.spec.getenv("CLAUDE_BOTTLE_CONTAINER")
	}
	if name != "" {
		p.plan.Name, p.plan.Pinned = names.ID(name, owner), true
		if err := names.CheckPinned(name, taken); err != nil {
			return err
		}
		return names.CheckID(name, owner)
	}
	if name, err = names.Free(p.spec.Agent, taken); err != nil {
		return err
	}
	p.plan.Name = names.ID(name, owner)
	return names.CheckID(name, owner)
}

// image decides on the image and the command.
func (p *preparation) image(ctx context.Context) error {
	base, source := p.spec.getenv("CLAUDE_BOTTLE_IMAGE"), "CLAUDE_BOTTLE_IMAGE"
	if base == "" {
		base, source = p.bottle.Image, "the manifest"
	}
	if base == "" {
		if p.plan.kind.Image == nil {
			return &hint.Error{
				Err:  fmt.Errorf("missing image of bottle %q: bottle cannot build one with %s", p.agent.Bottle, p.plan.kind.Title),
				Hint: "set image, or image and build, in the bottle",
			}
		}
		base, source = p.plan.kind.DefaultImage(), "the default"
	}
	ref, err := imageref.Normalize(base)
	if err != nil {
		return fmt.Errorf("image %q from %s: %w", base, source, err)
	}
	looked := ref
	if p.spec.CwdImage {
		p.plan.BaseRef = ref
		if ref, err = p.derived(); err != nil {
			return err
		}
	}
	if p.spec.Cwd || p.spec.CwdImage || p.spec.Resume != nil {
		if err := p.cwd(); err != nil {
			return err
		}
	}
	p.plan.Image, p.plan.caller = ref, p.spec.Caller
	p.plan.args = p.spec.Args
	info, known, err := p.lookUp(ctx, looked, source == "the manifest")
	if err != nil {
		return err
	}
	p.plan.User = info.User
	if known {
		p.plan.ImageDigest = info.Digest
	}
	p.imageLogsIn = len(p.plan.kind.Given(func(name string) bool {
		return slices.ContainsFunc(info.Env, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
	})) > 0
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
	if p.plan.Runtime == Runc {
		return p.host.Runtime(ctx, Runc)
	}
	// The proxy's, too. Each check starts programs.
	var proxy error
	var wg sync.WaitGroup
	wg.Go(func() { proxy = p.host.Runtime(ctx, Runc) })
	agent := p.host.Runtime(ctx, p.plan.Runtime)
	wg.Wait()
	return cmp.Or(agent, proxy)
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
	entries := egress.Entries{Allow: e.Allow, Rules: e.Rules, Deny: e.Deny, AllowPrivate: e.AllowPrivate}
	for _, h := range ssh {
		entries.SSH = append(entries.SSH, h.Destination())
	}
	return entries
}

// Entries returns the policy as the proxy reads it.
func (p *Plan) Entries() egress.Entries { return p.entries }

func (p *preparation) env(context.Context) (err error) {
	in := envInput{
		caller: p.spec.Caller, noInput: p.spec.NoInput, namesOnly: p.spec.NamesOnly, forms: p.spec.Forms, manifest: p.plan.Manifest,
		listed: p.bottle.Env, files: p.spec.EnvFiles, flags: parseEnvFlags(p.spec.Env), token: p.spec.getenv(callerToken) != "",
	}
	if p.plan.kind.Name != agents.Default {
		in.token = false
	}
	if p.spec.ForwardToken != nil {
		in.token = *p.spec.ForwardToken
	}
	in.login, in.logins = p.stored, p.plan.kind.Variables()
	in.inject = p.injectRules()
	if p.plan.EnvPipes = in.pipes(); len(p.plan.EnvPipes) > 0 {
		p.plan.env = in
	}
	p.plan.Env, err = in.resolve()
	if err == nil && (p.storedErr != nil && !slices.ContainsFunc(p.plan.Env, func(v provision.Variable) bool { return slices.Contains(in.logins, v.Name) })) {
		err = p.storedErr
	}
	return err
}

// readLogin reads the login that bottle login has stored for the agent, if it is known
// to be of its kind.
func (p *preparation) readLogin() (*logins.Login, error) {
	if p.plan.Kind == "" && !p.plan.kind.Runs(p.agent.Command) {
		return nil, nil
	}
	return logins.Read(p.spec.Caller, p.plan.kind.Name)
}

// names reports whether the command line or the stored login names a variable.
func (p *preparation) names(variable string) bool {
	return p.stored != nil && p.stored.Variable == variable || slices.ContainsFunc(slices.Concat(p.spec.EnvFiles, parseEnvFlags(p.spec.Env)), func(a EnvArg) bool { return a.Name == variable })
}

// login finds the variable with the agent's login.
func (p *preparation) login() {
	for _, l := range p.plan.kind.Logins {
		if slices.ContainsFunc(p.plan.Env, func(v provision.Variable) bool { return v.Name == l.Variable }) {
			p.plan.Login = l.Variable
			return
		}
	}
}

func (p *preparation) limits(context.Context) (err error) {
	p.plan.Limits, p.limitBounds, err = p.spec.Rules.Limits(p.bottle.Limits, p.bottle.Limits.OrDefault())
	return err
}

func (p *preparation) warn() {
	plan := p.plan
	warn := func(format string, args ...any) { plan.Warnings = append(plan.Warnings, fmt.Sprintf(format, args...)) }
	if plan.Runtime == Runc {
		warn("runtime runc: the agent shares the host's kernel, without gVisor's isolation; its disk use has no limit; host users with the user ID of the agent can send it signals")
	}
	if plan.Build != nil && plan.Build.HostNetwork {
		warn("network: host: the steps of the build reach the host's loopback interface, its abstract sockets and its local networks")
	}
	p.warnLogin(warn)
	for _, w := range entryWarnings(entriesOf(p.requested.Sorted(), p.bottle.SSH)) {
		warn("%s", w)
	}
	if plan.CredentialsUnknown {
		warn("--cwd copies more files than could be searched for credentials in %s: exclude credentials in .bottleignore", credentialsTimeout)
	}
	if len(plan.CredentialFiles) > 0 {
		warn("--cwd copies %s: exclude what the agent does not need in .bottleignore", credentialsText(plan.CredentialFiles))
	}
	p.warnProxy(warn)
	for _, w := range append(plan.Network.Warnings, p.workspaceWarnings...) {
		warn("%s", w)
	}
	if p.gitWarning != "" {
		warn("%s", p.gitWarning)
	}
	for _, w := range append(p.skillWarnings, provision.SSHWarnings(plan.ssh)...) {
		warn("%s", w)
	}
}

// warnLogin warns if the agent gets no login. The image may contain one, so it is not
// an error.
func (p *preparation) warnLogin(warn func(format string, args ...any)) {
	k := p.plan.kind
	if p.plan.Login != "" || slices.Contains(p.bottle.Logins, k.Name) || len(k.Logins) == 0 || len(p.plan.EnvPipes) > 0 || p.imageLogsIn {
		return
	}
	if p.plan.Kind == "" && !k.Runs(p.agent.Command) {
		return // the kind is not known to be right
	}
	sudo := ""
	if underSudo(p.spec.Caller) {
		sudo = "; sudo clears the environment, see sudo --preserve-env=" + p.callerVariable()
	}
	warn("%s gets no login: run bottle login %s, or pass %s to the bottle%s", k.Title, k.Name, strings.Join(k.Variables(), " or "), sudo)
}

// callerVariable is the caller's variable with the usual login of the agent.
func (p *preparation) callerVariable() string {
	if name := p.plan.kind.Logins[0].Variable; name != agentToken {
		return name
	}
	return callerToken
}

func (p *preparation) skills(context.Context) error {
	s, err := provision.ReadSkills(p.spec.Caller, p.plan.kind, p.agent.Skills)
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
