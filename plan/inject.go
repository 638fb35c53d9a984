package plan

import (
	"fmt"
	"net"
	"slices"
	"strconv"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/provision"
)

const injectNeedsAllow = "add the host to egress.allow"

// injectRules says which variables are injected. It is applied whenever variables have
// been resolved.
type injectRules struct {
	listed map[string]*manifest.Injection // of the manifest, by variable
	// kind are the defaults for logins of the agent's kind.
	kind map[string][]string
}

// injectRules returns the rules of the bottle and of the agent's kind.
func (p *preparation) injectRules() injectRules {
	rules := injectRules{listed: map[string]*manifest.Injection{}, kind: map[string][]string{}}
	for _, v := range p.bottle.Env {
		if v.Inject != nil {
			rules.listed[v.Name] = v.Inject
		}
	}
	known := p.plan.Kind != "" || p.plan.kind.Runs(p.agent.Command)
	if !known {
		return rules
	}
	for _, l := range p.plan.kind.Logins {
		var hosts []string
		for _, h := range l.Inject {
			host, err := egress.ParseHost(h)
			if err == nil && p.policyErr == nil && p.allowsTarget(host) {
				hosts = append(hosts, host)
			}
		}
		// A login that also goes to a host that is not listed would not work there.
		if len(hosts) == len(l.Inject) && len(hosts) > 0 && !slices.ContainsFunc(l.InjectUnless, p.setsVariable) {
			rules.kind[l.Variable] = hosts
		}
	}
	return rules
}

// setsVariable reports whether the bottle, the command line or the login sets a variable.
func (p *preparation) setsVariable(name string) bool {
	return p.names(name) || slices.ContainsFunc(p.bottle.Env, func(v manifest.Variable) bool { return v.Name == name })
}

// apply returns a variable with its rule.
func (r injectRules) apply(v provision.Variable) provision.Variable {
	if v.Source == manifest.SourceLiteral {
		return v
	}
	if listed, ok := r.listed[v.Name]; ok {
		v.Inject, v.As = listed.Hosts, listed.As
	} else if hosts := r.kind[v.Name]; len(hosts) > 0 {
		v.Inject, v.InjectKind = hosts, true
	}
	return v
}

// allowsTarget reports whether the policy allows host:port.
func (p *preparation) allowsTarget(target string) bool {
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return false
	}
	n, err := strconv.Atoi(port)
	return err == nil && p.plan.policy.Check(host, n).Allowed
}

// checkInject checks the manifest's variables that are injected: the policy has to allow the
// hosts, because inject allows none.
func (p *preparation) checkInject() error {
	var problems hint.Problems
	for _, v := range p.bottle.Env {
		if v.Inject == nil || len(v.Inject.Hosts) == 0 {
			continue
		}
		for _, target := range v.Inject.Hosts {
			if p.policyErr == nil && !p.allowsTarget(target) {
				problems.Add(&hint.Error{
					Err:  fmt.Errorf("%s: cannot inject %s for %s: not allowed by egress", v.At, v.Name, target),
					Hint: injectNeedsAllow,
				})
			}
		}
	}
	return problems.Err()
}
