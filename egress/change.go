package egress

import (
	"fmt"
	"slices"
)

// Change is what a change of a policy has added to its lists and removed from them.
type Change struct {
	Added   Entries `json:"added"`
	Removed Entries `json:"removed"`
}

// Empty reports whether nothing was changed.
func (c Change) Empty() bool {
	n := 0
	for _, e := range []Entries{c.Added, c.Removed} {
		n += len(e.Allow) + len(e.SSH) + len(e.Deny) + len(e.AllowPrivate)
	}
	return n == 0
}

// Allowing returns the entries with rule allowed: without the entries of Deny for
// it, and with an entry of Allow if none allows it. The change is empty if rule was
// allowed before. It does not modify e. The error is a [*StillDeniedError] if a
// broader entry of Deny remains, which would win.
func (e Entries) Allowing(rule Rule) (Entries, Change, error) {
	deny, lifted := split(e.Deny, ParseRule, func(d Rule) bool { return d.Host == rule.Host && liftedBy(d, rule) })
	out := e
	out.Deny = deny
	policy, err := out.Policy()
	if err != nil {
		return e, Change{}, err
	}
	for _, d := range policy.Deny {
		if d.denies(rule) {
			return e, Change{}, &StillDeniedError{Rule: rule, Entry: d.String()}
		}
	}
	change := Change{Removed: Entries{Deny: lifted}}
	if slices.Contains(policy.Allow, rule) || len(lifted) > 0 && policy.allowsAll(rule) {
		return out, change, nil
	}
	change.Added.Allow = []string{rule.String()}
	out.Allow = append(slices.Clone(e.Allow), rule.String())
	return out, change, nil
}

// liftedBy reports whether allowing rule removes an entry of the deny list for the
// same host: if the entry denies nothing but ports of the rule.
func liftedBy(d, rule Rule) bool {
	if d.Port == 0 || rule.Port == 0 {
		return rule.Port == 0 && (d.Port == 0 || d.LastPort == 0 && rule.matchesPort(d.Port))
	}
	return rule.matchesPort(d.Port) && rule.matchesPort(max(d.Port, d.LastPort))
}

// Denying returns the entries with rule denied: without the entries of Allow and
// SSH for its host and port, and with an entry of Deny if another entry would
// still allow it. The change is empty if rule was not allowed before. It does not
// modify e. A rule without a port means every port.
func (e Entries) Denying(rule Rule) (Entries, Change, error) {
	same := func(have Rule) bool {
		return have.Host == rule.Host && (rule.Port == 0 || have.Port == rule.Port && have.LastPort == rule.LastPort)
	}
	out := e
	var change Change
	out.Allow, change.Removed.Allow = split(e.Allow, ParseRule, same)
	out.SSH, change.Removed.SSH = split(e.SSH, ParseSSHRule, same)
	policy, err := out.Policy()
	if err != nil {
		return e, Change{}, err
	}
	if policy.Covering(rule) != "" {
		out.Deny = append(slices.Clone(e.Deny), rule.String())
		change.Added.Deny = []string{rule.String()}
	}
	return out, change, nil
}

// split returns the entries of a list that do not match, and those that do.
func split(list []string, parse func(string) (Rule, error), match func(Rule) bool) (rest, matching []string) {
	for _, s := range list {
		if r, err := parse(s); err == nil && match(r) {
			matching = append(matching, s)
		} else {
			rest = append(rest, s)
		}
	}
	return rest, matching
}

// allowsAll reports whether one entry allows everything that rule does.
func (p Policy) allowsAll(rule Rule) bool {
	return slices.ContainsFunc(p.Allow, func(r Rule) bool {
		for _, ports := range rule.ranges() {
			if !r.matchesPort(int(ports.First)) || !r.matchesPort(int(ports.Last)) {
				return false
			}
		}
		return r.includesHost(rule)
	})
}

// StillDeniedError is the error of allowing what a broader deny entry denies.
type StillDeniedError struct {
	Rule  Rule
	Entry string
}

func (e *StillDeniedError) Error() string {
	return fmt.Sprintf("%s is denied by the entry %s", e.Rule, e.Entry)
}

// Hint returns advice for the user.
func (e *StillDeniedError) Hint() string { return "allow " + e.Entry + " or remove that deny entry" }
