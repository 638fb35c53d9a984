package plan

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/provision"
)

// Claude Code's token is kept under a name of bottle's own on the caller's side,
// so that an agent outside of a bottle does not take it up.
const (
	callerToken = "CLAUDE_BOTTLE_OAUTH_TOKEN"
	agentToken  = "CLAUDE_CODE_OAUTH_TOKEN"
)

// maxVariable bounds NAME=VALUE and its NUL, in bytes: Linux's MAX_ARG_STRLEN
// (execve(2)).
const maxVariable = 128 << 10

// envResolver collects an agent's variables, and what is wrong with them. Of two
// of the same name the later one holds, and the earlier one's source is not
// looked at: what cannot be had in one way can be given in another.
type envResolver struct {
	caller   caller.Caller
	noInput  bool
	manifest string // path
	token    bool   // Claude Code's is forwarded from callerToken
	sources  []envSource
	vars     []provision.Variable
	unset    []string
	problems hint.Problems
}

// envSource is a variable that is yet to be looked up.
type envSource struct {
	name   string
	lookUp func()
}

// resolve looks up what the manifest, files and flags ask for, in this order.
// token says whether Claude Code's is forwarded.
func (r *envResolver) resolve(vars []manifest.Variable, files []EnvArg, flags []string, token bool) ([]provision.Variable, error) {
	r.token = token
	for _, v := range vars {
		r.source(v.Name, func() { r.fromManifest(v) })
	}
	for _, a := range files {
		r.fromArg(a)
	}
	for _, kv := range flags {
		r.fromArg(parseEnvFlag(kv))
	}
	if token && !r.has(agentToken) {
		r.source(agentToken, func() { r.forward(agentToken, callerToken) })
	}
	for _, s := range r.sources {
		s.lookUp()
	}
	r.reportUnset()
	for _, v := range r.vars {
		if n := len(v.Name) + len(v.Literal) + len(v.Secret.Reveal()) + 2; n > maxVariable {
			r.problems.Add(fmt.Errorf("the value of %s is too long: with its name it has %d bytes, and the kernel takes %d", v.Name, n, maxVariable))
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

func (r *envResolver) set(v provision.Variable) { r.vars = append(r.vars, v) }

func (r *envResolver) fromManifest(v manifest.Variable) {
	switch {
	case v.Literal != nil:
		r.set(provision.Variable{Name: v.Name, Source: manifest.SourceLiteral, Literal: *v.Literal})
	case v.Prompt != "":
		if r.noInput {
			r.problems.Add(&hint.Error{
				Err:  fmt.Errorf("%s: cannot ask for %s with --no-input", v.At, v.Name),
				Hint: fmt.Sprintf("forward it: set %s and add -e %[1]s", v.Name),
			})
			return
		}
		r.set(provision.Variable{Name: v.Name, Source: manifest.SourcePrompt, Ask: v.Prompt})
	case v.File != "":
		path := r.caller.Path(v.File, filepath.Dir(r.manifest))
		value, err := r.readFile(path)
		if err != nil {
			r.problems.Add(fmt.Errorf("%s: %s: %w", v.At, v.Name, err))
			return
		}
		r.set(provision.Variable{Name: v.Name, Source: manifest.SourceFile, From: path, Secret: secret.New(value)})
	default:
		r.forward(v.Name, v.From)
	}
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
	value, ok := r.caller.Getenv(from)
	if !ok && r.token && name == agentToken && from == agentToken {
		// A manifest that names it means the token, wherever the caller has it.
		from = callerToken
		value, ok = r.caller.Getenv(from)
	}
	switch {
	case ok:
		r.set(provision.Variable{Name: name, Source: manifest.SourceForwarded, From: from, Secret: secret.New(value)})
	case !slices.Contains(r.unset, from):
		r.unset = append(r.unset, from)
	}
}

func (r *envResolver) reportUnset() {
	if len(r.unset) == 0 {
		return
	}
	verb, fix := "is", "set and export it"
	if len(r.unset) > 1 {
		verb, fix = "are", "set and export them"
	}
	if _, sudo := r.caller.Getenv("SUDO_UID"); sudo {
		fix = fmt.Sprintf("sudo clears the environment: let through what it has with sudo --preserve-env=%s bottle …, or give --env-file a file on tmpfs", strings.Join(r.unset, ","))
	}
	r.problems.Add(&hint.Error{
		Err:  fmt.Errorf("%s %s to be forwarded and not set", strings.Join(r.unset, ", "), verb),
		Hint: fix,
	})
}

// readFile reads a secret and takes off the line break at its end.
func (r *envResolver) readFile(path string) (string, error) {
	data, err := r.caller.ReadPrivate(path, maxVariable)
	if err != nil {
		return "", err
	}
	if bytes.IndexByte(data, 0) >= 0 {
		return "", fmt.Errorf("%s holds a NUL byte, which no variable can", path)
	}
	value, broken := strings.CutSuffix(string(data), "\n")
	if broken {
		value = strings.TrimSuffix(value, "\r")
	}
	return value, nil
}
