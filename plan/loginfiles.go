package plan

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/claudelogin"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/loginfile"
	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/provision"
)

// maxLoginFile bounds a file of logins, in bytes.
const maxLoginFile = 1 << 20

// loginFiles reads the files with logins that the manifest names.
func (p *preparation) loginFiles(context.Context) error {
	var problems hint.Problems
	for _, name := range p.bottle.Logins {
		l, err := p.loginFile(name)
		if err != nil {
			problems.Add(err)
			continue
		}
		if name == "claude" {
			p.plan.claude = claudelogin.New(p.spec.Caller, l.From)
			l.Renewed = p.plan.claude.Renewable()
		}
		p.plan.Logins = append(p.plan.Logins, l)
	}
	return problems.Err()
}

// loginFile reads one. Of its logins, the bottle gets those whose hosts egress allows: a
// login allows no host.
func (p *preparation) loginFile(name string) (provision.Login, error) {
	path, file, err := readLoginFile(p.spec.Caller, name)
	l := provision.Login{Format: name, From: path, Secrets: []provision.Variable{}, File: file}
	if err != nil || p.policyErr != nil {
		return l, err // the step for the policy reports its error
	}
	var refused []string
	for _, s := range file.Secrets {
		v := provision.Variable{Name: s.Name, Source: provision.SourceLoginFile, From: path, Secret: s.Value}
		for _, h := range s.Hosts {
			host, err := egress.ParseHost(h)
			if err == nil && p.allowsTarget(host) {
				v.Inject = append(v.Inject, host)
			} else {
				refused = append(refused, h)
			}
		}
		if len(v.Inject) > 0 {
			l.Secrets = append(l.Secrets, v)
		}
	}
	if len(l.Secrets) == 0 {
		return l, &hint.Error{
			Err:  fmt.Errorf("cannot use the logins of %s in %s: egress allows none of their hosts: %s", name, path, joined(refused)),
			Hint: injectNeedsAllow + ", or remove " + name + " from logins",
		}
	}
	return l, nil
}

// maxNamed is how many hosts an error names.
const maxNamed = 5

func joined(hosts []string) string {
	slices.Sort(hosts)
	hosts = slices.Compact(hosts)
	text := ""
	for i, h := range hosts[:min(len(hosts), maxNamed)] {
		if i > 0 {
			text += ", "
		}
		text += h
	}
	if len(hosts) > maxNamed {
		text += ", …"
	}
	return text
}

func readLoginFile(c caller.Caller, name string) (path string, file *loginfile.File, err error) {
	format, ok := loginfile.Get(name)
	if !ok {
		return "", nil, fmt.Errorf("unknown logins %q", name)
	}
	path = filepath.Join(c.Home, format.Path)
	if moved, _ := c.Getenv(format.Variable); moved != "" {
		path = c.Abs(moved)
		if format.Dir {
			path = filepath.Join(path, filepath.Base(format.Path))
		}
	}
	data, err := c.ReadPrivate(path, maxLoginFile)
	if err == nil {
		file, err = format.Parse(data)
	}
	if err != nil {
		fix := hint.Of(err)
		if fix == "" {
			fix = format.Get + ", or remove " + name + " from logins"
		}
		return path, nil, &hint.Error{Err: fmt.Errorf("read the logins of %s from %s: %w", name, path, err), Hint: fix}
	}
	return path, file, nil
}

// Injected returns what requests get: variables, and the secrets of login files.
func (p *Plan) Injected() []provision.Variable {
	var out []provision.Variable
	for _, v := range p.Env {
		if len(v.Inject) > 0 {
			out = append(out, v)
		}
	}
	return append(out, p.loginSecrets()...)
}

func (p *Plan) loginSecrets() []provision.Variable {
	var out []provision.Variable
	for _, l := range p.Logins {
		out = append(out, l.Secrets...)
	}
	return out
}

// Secrets returns everything of the caller's that the run uses for the agent: variables, and
// the secrets of login files.
func (p *Plan) Secrets() []provision.Variable { return slices.Concat(p.Env, p.loginSecrets()) }

// renewClaude renews Claude Code's login if it ends soon. If it has ended and cannot be
// renewed, that is an error: later errors are reported by WatchSecrets.
func (p *Plan) renewClaude(ctx context.Context) error {
	if p.claude == nil {
		return nil
	}
	if err := p.claude.Renew(ctx); err != nil && !p.claude.Valid() {
		return hint.Wrap(err, "claude")
	}
	for i, l := range p.Logins {
		for j, v := range l.Secrets {
			if l.Format != "claude" {
				continue
			}
			value, err := p.rereadLogin(v)
			if err != nil {
				return err
			}
			p.Logins[i].Secrets[j].Secret = value
		}
	}
	return nil
}

// renewLogin returns the value of a login, which may be there also if there is an error.
func (p *Plan) renewLogin(ctx context.Context, v provision.Variable) (value secret.Value, err error) {
	if p.claude != nil && strings.HasPrefix(v.Name, "claude:") {
		err = p.claude.Renew(ctx)
	}
	value, readErr := p.rereadLogin(v)
	if readErr != nil {
		return secret.Value{}, readErr // of both, if it is the file's
	}
	return value, err
}

// rereadLogin reads the value of a login again.
func (p *Plan) rereadLogin(v provision.Variable) (secret.Value, error) {
	for _, l := range p.Logins {
		if l.From != v.From {
			continue
		}
		_, file, err := readLoginFile(p.caller, l.Format)
		if err != nil {
			return secret.Value{}, err
		}
		for _, s := range file.Secrets {
			if s.Name == v.Name {
				return s.Value, nil
			}
		}
	}
	return secret.Value{}, fmt.Errorf("%s has no login %s any more", v.From, v.Name)
}
