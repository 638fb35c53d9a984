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

// Allowing returns the entries with entry allowed: without the entries of Deny for
// it, and with an entry of Allow if none allows it. The change is empty if it was
// allowed before. It does not modify e. The error is a [*StillDeniedError] if a
// broader entry of Deny remains, which would win, and a [*NarrowedError] if the host has
// rules, which an entry of Allow must not widen.
func (e Entries) Allowing(entry ListEntry) (Entries, Change, error) {
	deny, lifted := split(e.Deny, ParseListEntry, func(d ListEntry) bool {
		if d.Preset != "" {
			return d.Preset == entry.Preset
		}
		return slices.ContainsFunc(entry.Rules, func(r Rule) bool { return d.Rules[0].Host == r.Host && liftedBy(d.Rules[0], r) })
	})
	out := e
	out.Deny = deny
	policy, err := out.Policy()
	if err != nil {
		return e, Change{}, err
	}
	narrowed := entry.Preset == "" && e.narrows(entry.Rules[0].Host)
	if narrowed && len(lifted) == 0 {
		return e, Change{}, &NarrowedError{Host: entry.Rules[0].Host}
	}
	for _, text := range deny {
		if err := stillDenied(text, entry); err != nil {
			return e, Change{}, err
		}
	}
	change := Change{Removed: Entries{Deny: lifted}}
	if narrowed { // its rules are in force again
		return out, change, nil
	}
	if all(entry.Rules, func(r Rule) bool { return slices.Contains(policy.Allow, r) }) || len(lifted) > 0 && all(entry.Rules, policy.allowsAll) {
		return out, change, nil
	}
	change.Added.Allow = []string{entry.String()}
	out.Allow = append(slices.Clone(e.Allow), entry.String())
	return out, change, nil
}

// stillDenied returns an error if an entry of the deny list denies a destination of
// entry completely.
func stillDenied(deny string, entry ListEntry) error {
	d, err := ParseListEntry(deny)
	if err != nil {
		return err
	}
	for _, r := range entry.Rules {
		if slices.ContainsFunc(d.Rules, func(one Rule) bool { return one.denies(r) }) {
			return &StillDeniedError{Rule: r, Entry: d.String()}
		}
	}
	return nil
}

func all(rules []Rule, match func(Rule) bool) bool {
	return !slices.ContainsFunc(rules, func(r Rule) bool { return !match(r) })
}

// liftedBy reports whether allowing rule removes an entry of the deny list for the
// same host: if the entry denies nothing but ports of the rule.
func liftedBy(d, rule Rule) bool {
	if d.Port == 0 || rule.Port == 0 {
		return rule.Port == 0 && (d.Port == 0 || d.LastPort == 0 && rule.matchesPort(d.Port))
	}
	return rule.matchesPort(d.Port) && rule.matchesPort(max(d.Port, d.LastPort))
}

// Denying returns the entries with entry denied: without the entries of Allow and
// SSH for its hosts and ports, and with an entry of Deny if another entry would
// still allow one of them. The change is empty if it was not allowed before. It does
// not modify e. A destination without a port means every port.
func (e Entries) Denying(entry ListEntry) (Entries, Change, error) {
	same := func(have ListEntry) bool {
		if have.Preset != "" {
			return have.Preset == entry.Preset
		}
		h := have.Rules[0]
		return slices.ContainsFunc(entry.Rules, func(r Rule) bool {
			return h.Host == r.Host && (r.Port == 0 || h.Port == r.Port && h.LastPort == r.LastPort)
		})
	}
	out := e
	var change Change
	out.Allow, change.Removed.Allow = split(e.Allow, ParseListEntry, same)
	out.SSH, change.Removed.SSH = split(e.SSH, parseSSHEntry, same)
	policy, err := out.Policy()
	if err != nil {
		return e, Change{}, err
	}
	if slices.ContainsFunc(entry.Rules, func(r Rule) bool { return policy.Covering(r) != "" }) {
		out.Deny = append(slices.Clone(e.Deny), entry.String())
		change.Added.Deny = []string{entry.String()}
	}
	return out, change, nil
}

func parseSSHEntry(s string) (ListEntry, error) {
	r, err := ParseSSHRule(s)
	return entryOf(r), err
}

// split returns the entries of a list that do not match, and those that do.
func split(list []string, parse func(string) (ListEntry, error), match func(ListEntry) bool) (rest, matching []string) {
	for _, s := range list {
		if entry, err := parse(s); err == nil && match(entry) {
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
