package plan

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/egress/inject"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/logins"
	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/provision"
)

// Claude Code's token has another name in the caller's environment, so that an agent
// outside a bottle does not use it.
const (
	callerToken = "CLAUDE_BOTTLE_OAUTH_TOKEN"
	agentToken  = "CLAUDE_CODE_OAUTH_TOKEN"
)

// MaxVariable bounds NAME=VALUE and its NUL, in bytes: Linux's MAX_ARG_STRLEN
// (execve(2)).
const MaxVariable = 128 << 10

// envInput is what an agent's variables are resolved from.
type envInput struct {
	caller  caller.Caller
	noInput bool
	// namesOnly: no value is read.
	namesOnly bool
	forms     bool                // Spec.Forms
	manifest  string              // path
	listed    []manifest.Variable // in the manifest
	files     []EnvArg
	flags     []EnvArg
	token     bool // forward Claude Code's token from callerToken
	// login is the stored login of the agent, used if none of the variables of logins
	// is given; nil: there is none.
	login  *logins.Login
	logins []string
	inject injectRules
}

// pipes are the pipes among the files.
func (in envInput) pipes() []string {
	var out []string
	for _, a := range in.files {
		if a.pipe {
			out = append(out, a.From)
		}
	}
	return out
}

// resolve reads the variables of the manifest, the files and the flags, in this order.
// A source that is not available is an error only if no pipe can still replace it.
func (in envInput) resolve() ([]provision.Variable, error) {
	r := &envResolver{in: in, vars: []provision.Variable{}}
	return r.resolve()
}

// ReadPipes reads the variables of pipes, see PipeArg, and resolves all variables
// again. A plan with EnvPipes cannot be launched before.
func (p *Plan) ReadPipes(read func(path string) ([]EnvArg, error)) (err error) {
	if len(p.EnvPipes) == 0 {
		return nil
	}
	if err := p.env.readPipes(read); err != nil {
		return err
	}
	p.EnvPipes = nil
	p.Env, err = p.env.resolve()
	return err
}

// readPipes replaces the pipes among the files by their variables.
func (in *envInput) readPipes(read func(path string) ([]EnvArg, error)) error {
	var files []EnvArg
	for _, a := range in.files {
		args := []EnvArg{a}
		if a.pipe {
			var err error
			if args, err = read(a.From); err != nil {
				return err
			}
		}
		files = append(files, args...)
	}
	in.files = files
	return nil
}

// envResolver collects an agent's variables and their errors. A later variable
// overrides an earlier one of the same name, whose source is not read: the user can
// replace a source that is not available.
type envResolver struct {
	in       envInput
	sources  []envSource
	vars     []provision.Variable
	unset    []string
	problems hint.Problems
}

// envSource is a variable whose value has not been read yet.
type envSource struct {
	name   string
	lookUp func()
}

func (r *envResolver) resolve() ([]provision.Variable, error) {
	for _, v := range r.in.listed {
		r.source(v.Name, func() { r.fromManifest(v) })
	}
	for _, a := range r.in.files {
		if !a.pipe {
			r.fromArg(a)
		}
	}
	for _, a := range r.in.flags {
		r.fromArg(a)
	}
	if r.in.token && !r.has(agentToken) {
		r.source(agentToken, func() { r.forward(agentToken, callerToken) })
	}
	if l := r.in.login; l != nil && !slices.ContainsFunc(r.in.logins, r.has) {
		r.source(l.Variable, r.setLogin)
	}
	given := len(r.problems)
	for _, s := range r.sources {
		s.lookUp()
	}
	r.reportUnset()
	if len(r.in.pipes()) > 0 {
		r.problems = r.problems[:given]
	}
	for _, v := range r.vars {
		if n := len(v.Name) + len(v.Literal) + len(v.Secret.Reveal()) + 2; n > MaxVariable {
			r.problems.Add(fmt.Errorf("value of %s too long: %d bytes with its name (max %d)", v.Name, n, MaxVariable))
		}
	}
	return r.vars, r.problems.Err()
}

func (r *envResolver) has(name string) bool { return r.index(name) >= 0 }

func (r *envResolver) index(name string) int {
	return slices.IndexFunc(r.sources, func(s envSource) bool { return s.name == name })
}

func (r *envResolver) source(name string, lookUp func()) {
	s := envSource{name, lookUp}
	if i := r.index(name); i >= 0 {
		r.sources[i] = s
		return
	}
	r.sources = append(r.sources, s)
}

func (r *envResolver) set(v provision.Variable) {
	v = r.in.inject.apply(v)
	if r.in.namesOnly {
		v.Secret = r.form(v)
	}
	r.vars = append(r.vars, v)
}

// form returns a placeholder for a value that is only needed for its form.
func (r *envResolver) form(v provision.Variable) secret.Value {
	if value := v.Secret.Reveal(); r.in.forms && len(v.Inject) > 0 && value != "" {
		return secret.New(inject.Placeholder(value))
	}
	return secret.Value{}
}

func (r *envResolver) fromManifest(v manifest.Variable) {
	switch {
	case v.Literal != nil:
		r.set(provision.Variable{Name: v.Name, Source: manifest.SourceLiteral, Literal: *v.Literal})
	case v.Prompt != "":
		if r.in.noInput {
			r.problems.Add(&hint.Error{
				Err:  fmt.Errorf("%s: cannot ask for %s with --no-input", v.At, v.Name),
				Hint: fmt.Sprintf("forward it: set %s and add -e %[1]s", v.Name),
			})
			return
		}
		r.set(provision.Variable{Name: v.Name, Source: manifest.SourcePrompt, Ask: v.Prompt})
	case len(v.Command) > 0:
		r.set(provision.Variable{Name: v.Name, Source: manifest.SourceCommand, Command: v.Command, TTL: int64(v.TTL.Seconds())})
	case v.File != "":
		path := r.in.caller.Path(v.File, filepath.Dir(r.in.manifest))
		of := provision.Variable{Name: v.Name, Source: manifest.SourceFile, From: path}
		if r.in.namesOnly && (!r.in.forms || len(r.in.inject.apply(of).Inject) == 0) {
			r.set(of)
			return
		}
		value, err := r.readFile(path)
		if err != nil {
			r.problems.Add(fmt.Errorf("%s: %s: %w", v.At, v.Name, err))
			return
		}
		of.Secret = secret.New(value)
		r.set(of)
	case r.usesLogin(v):
		r.setLogin()
	default:
		r.forward(v.Name, v.From)
	}
}

// usesLogin reports whether a variable that only says where its value goes has the value
// of the stored login.
func (r *envResolver) usesLogin(v manifest.Variable) bool {
	_, given := r.in.caller.Getenv(v.Name)
	return r.in.login != nil && r.in.login.Variable == v.Name && v.Inject != nil && v.From == v.Name && !given
}

func (r *envResolver) setLogin() {
	l := r.in.login
	r.set(provision.Variable{Name: l.Variable, Source: provision.SourceLogin, From: l.Path, Secret: l.Value})
}

func (r *envResolver) fromArg(a EnvArg) {
	switch err := a.check(); {
	case err != nil:
		r.problems.Add(err)
	case a.Value != nil:
		r.source(a.Name, func() { r.set(provision.Variable{Name: a.Name, Source: a.Source, From: a.From, Secret: *a.Value}) })
	default:
		r.source(a.Name, func() { r.forward(a.Name, a.Name) })
	}
}

func (r *envResolver) forward(name, from string) {
	value, ok := r.in.caller.Getenv(from)
	if !ok && r.in.token && name == agentToken && from == agentToken {
		// The caller may have the token under either name.
		from = callerToken
		value, ok = r.in.caller.Getenv(from)
	}
	switch {
	case ok || r.in.namesOnly:
		r.set(provision.Variable{Name: name, Source: manifest.SourceForwarded, From: from, Secret: secret.New(value)})
	case !slices.Contains(r.unset, from):
		r.unset = append(r.unset, from)
	}
}

func (r *envResolver) reportUnset() {
	if len(r.unset) == 0 {
		return
	}
	fix := "set and export it"
	if len(r.unset) > 1 {
		fix = "set and export them"
	}
	if underSudo(r.in.caller) {
		fix = fmt.Sprintf("sudo clears the environment: run sudo --preserve-env=%s bottle …, or pass --env-file a file on tmpfs", strings.Join(r.unset, ","))
	}
	r.problems.Add(&hint.Error{
		Err:  fmt.Errorf("cannot forward %s: not set in the environment", strings.Join(r.unset, ", ")),
		Hint: fix,
	})
}

// underSudo reports whether the caller ran bottle with sudo, which clears the environment.
func underSudo(c caller.Caller) bool {
	_, ok := c.Getenv("SUDO_UID")
	return ok
}

// readFile reads a secret and removes a line break at its end.
func (r *envResolver) readFile(path string) (string, error) {
	data, err := r.in.caller.ReadPrivate(path, MaxVariable)
	if err != nil {
		return "", err
	}
	return OneValue(path, data)
}

// OneValue returns a value without a line break at its end.
func OneValue(from string, data []byte) (string, error) {
	if bytes.IndexByte(data, 0) >= 0 {
		return "", fmt.Errorf("%s contains a NUL byte, which a variable cannot contain", from)
	}
	value, broken := strings.CutSuffix(string(data), "\n")
	if broken {
		value = strings.TrimSuffix(value, "\r")
	}
	return value, nil
}
