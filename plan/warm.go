package plan

import (
	"fmt"

	"github.com/bot-bottle/bottle/egress/inject"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/provision"
)

// Reasons why a run does not use an agent that was started ahead of it.
const (
	reasonTerminal = "the agent was started on a terminal, which this run does not attach to"
	reasonValues   = "the agent gets a value of this run"
)

const warmFix = "remove warm from its pool, or "

// checkWarm checks that the agent can be started ahead of its runs, as far as the manifest
// decides: nothing of a run's may then be in its process.
func (p *preparation) checkWarm() error {
	if !p.plan.Warm {
		return nil
	}
	var problems hint.Problems
	refuse := func(fix, format string, args ...any) {
		problems.Add(&hint.Error{
			Err:  fmt.Errorf("cannot start agent %q ahead of its runs: %s", p.spec.Agent, fmt.Sprintf(format, args...)),
			Hint: warmFix + fix,
		})
	}
	rules := p.injectRules()
	for _, v := range p.bottle.Env {
		of := provision.Variable{Name: v.Name, Source: manifest.SourceForwarded}
		switch {
		case v.Literal != nil:
		case len(rules.apply(of).Inject) == 0:
			refuse("inject the value", "it gets the value of %s", v.Name)
		case v.Prompt != "" || len(v.Command) > 0:
			refuse("take the value from a variable, a file or bottle login", "the form of %s is not known before a run", v.Name)
		}
	}
	if len(p.bottle.SSH) > 0 {
		refuse("use a bottle without ssh", "it gets ssh keys")
	}
	if len(p.bottle.Logins) > 0 {
		refuse("use a bottle without logins", "it gets login files")
	}
	if len(p.agent.MCP) > 0 {
		refuse("remove its MCP servers", "its MCP servers would start without a network")
	}
	return problems.Err()
}

// WarmObstacle says why a run cannot use an agent that was started ahead of it; empty: it can.
func (p *Plan) WarmObstacle() string {
	if !p.terminal {
		return reasonTerminal
	}
	if len(p.EnvPipes) > 0 || len(p.ssh) > 0 || len(p.Logins) > 0 {
		return reasonValues
	}
	for _, v := range p.Env {
		// Without a form, no placeholder that was made before fits the value.
		if v.IsSecret() && (len(v.Inject) == 0 || inject.Form(v.Secret.Reveal()) == "") {
			return reasonValues
		}
	}
	return ""
}

// UsesWarm reports whether the plan's bottle has an agent that was started ahead of its run.
func (p *Plan) UsesWarm() bool { return p.Warm && p.WarmObstacle() == "" }

// ForwardedForms returns placeholders for the caller's variables that are injected, by their
// names there: they have the form of the values and tell nothing else.
func (p *Plan) ForwardedForms() map[string]string {
	out := map[string]string{}
	for _, v := range p.Env {
		if v.Source == manifest.SourceForwarded && len(v.Inject) > 0 {
			out[v.From] = inject.Placeholder(v.Secret.Reveal())
		}
	}
	return out
}
