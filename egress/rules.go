package egress

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/egress/hostrule"
	"github.com/bot-bottle/bottle/egress/inject"
)

// ScannerRules is the check that refuses what no rule of a host allows.
const ScannerRules = "rules"

// ParseHostRule checks a rule and returns it with its host in lower-case ASCII, without the
// default port.
func ParseHostRule(r hostrule.Rule) (hostrule.Rule, error) {
	target, err := ParseHost(r.Host)
	if err != nil {
		return r, fmt.Errorf("invalid host %q: %w", shorten(r.Host), err)
	}
	r.Host = strings.TrimSuffix(target, fmt.Sprintf(":%d", portHTTPS))
	if strings.HasSuffix(target, fmt.Sprintf(":%d", portHTTP)) {
		return r, errors.New("rules are for https: port 80 is for plain HTTP")
	}
	return r, r.Check()
}

// addRules adds the hosts that have rules, on their own port only.
func (p *Policy) addRules(e Entries) error {
	byTarget := map[string][]hostrule.Rule{}
	for i, r := range e.Rules {
		r, err := ParseHostRule(r)
		if err != nil {
			return &entryError{"rules", i, err}
		}
		target := narrowedTarget(r)
		if byTarget[target.String()] == nil {
			p.Allow = append(p.Allow, target)
		}
		byTarget[target.String()] = append(byTarget[target.String()], r)
	}
	p.rules = make(map[string]*hostrule.Set, len(byTarget))
	for target, rules := range byTarget {
		p.rules[target] = hostrule.NewSet(rules)
	}
	for i, text := range e.Allow {
		if err := e.checkNotNarrowed(text); err != nil {
			return &entryError{"allow", i, err}
		}
	}
	return nil
}

// narrowedTarget returns the destination of a valid rule.
func narrowedTarget(r hostrule.Rule) Rule {
	target, err := parseRule(r.Host)
	if err != nil {
		return Rule{}
	}
	if target.Port == 0 {
		target.Port = portHTTPS
	}
	target.Narrowed = true
	return target
}

// NarrowedError is the error of allowing a host completely that has rules.
type NarrowedError struct{ Host string }

func (e *NarrowedError) Error() string {
	return e.Host + " has rules for its requests, and an entry without rules would allow all of them"
}

// Hint returns advice for the user.
func (e *NarrowedError) Hint() string {
	return "change the rules of " + e.Host + " under egress.allow in the manifest, and run the agent again"
}

// checkNotNarrowed returns an error for an entry of a host that has rules. Wildcards and
// presets include such a host without allowing more of it.
func (e Entries) checkNotNarrowed(text string) error {
	entry, err := ParseListEntry(text)
	if err != nil || entry.Preset != "" || !e.narrows(entry.Rules[0].Host) {
		return nil //nolint:nilerr // reported elsewhere
	}
	return &NarrowedError{Host: entry.Rules[0].Host}
}

// narrows reports whether a host, in canonical form, has rules.
func (e Entries) narrows(host string) bool {
	return slices.ContainsFunc(e.Rules, func(r hostrule.Rule) bool { return narrowedTarget(r).Host == host })
}

// WithoutNarrowed returns a list without the hosts that have rules: hosts of presets, which
// do not allow more of them.
func WithoutNarrowed(list []string, rules []hostrule.Rule) []string {
	e := Entries{Rules: rules}
	return slices.DeleteFunc(slices.Clone(list), func(text string) bool { return e.checkNotNarrowed(text) != nil })
}

// narrows reports whether a host in canonical form has rules.
func (p Policy) narrows(name string) bool {
	return len(p.rules) > 0 && slices.ContainsFunc(p.Allow, func(r Rule) bool { return r.Narrowed && r.Host == name })
}

// Requests returns what decides about single requests to host:port; nil: nothing does.
func (p Policy) Requests(target string) *hostrule.Set { return p.rules[target] }

// ruleTargets returns the hosts with rules, each with its port.
func (p Policy) ruleTargets() []string {
	var out []string
	for target := range p.rules {
		out = append(out, target)
	}
	return sortedUnique(out)
}

// RuleHosts returns the hosts of rules, for a certificate authority.
func RuleHosts(rules []hostrule.Rule) []string {
	var out []string
	for _, r := range rules {
		out = append(out, narrowedTarget(r).String())
	}
	return sortedUnique(out)
}

// terminates reports whether a tunnel is to be terminated: its host has a secret, or rules.
// The proxy cannot terminate hosts that have got their rules while it was running, and
// returns an error.
func (s *Server) terminates(target string, v Verdict) (bool, error) {
	switch in := s.injector.Load(); {
	case in != nil && in.Terminates(target):
		return v.Narrowed || in.Injects(target), nil
	case v.Narrowed:
		return false, fmt.Errorf("the rules for %s cannot be enforced: start the bottle again", target)
	}
	return false, nil
}

// checkRequest decides about a request in a terminated tunnel by the policy in force.
func (s *Server) checkRequest(target string, r *http.Request) *inject.Denial {
	e := s.current.Load()
	set := e.policy.Requests(target)
	if set == nil {
		return nil
	}
	d := set.Check(r)
	if d == nil {
		return nil
	}
	if e.learn {
		s.log.log(line{
			Event: EventWouldBlock, Method: r.Method, Target: target, URL: "https://" + target + r.URL.Path, Scanner: ScannerRules, Reason: d.Reason,
		})
		return nil
	}
	return &inject.Denial{Reason: d.Reason, Status: d.Status, Answer: d.Answer}
}
