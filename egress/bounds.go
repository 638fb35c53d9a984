package egress

import (
	"net/netip"
	"slices"
)

// Outside returns the destinations of allow, rules and ssh that no entry of most, a list in the
// form of allow, includes completely, with presets in both expanded. They are sorted.
func (e Entries) Outside(most []string) ([]string, error) {
	bound, err := NewPolicy(most)
	if err != nil {
		return nil, err
	}
	// An ssh entry has a port of its own; a bound without ports means the host.
	for _, r := range slices.Clone(bound.Allow) {
		if r.Port == 0 {
			r.Port = portSSH
			bound.Allow = append(bound.Allow, r)
		}
	}
	return e.rulesThat(func(r Rule) bool { return !bound.allowsAll(r) })
}

// Within returns the destinations of allow, rules and ssh that an entry of never, a list in the
// form of deny, denies completely. They are sorted.
func (e Entries) Within(never []string) ([]string, error) {
	bound, err := Entries{Deny: never}.Policy()
	if err != nil {
		return nil, err
	}
	return e.rulesThat(func(r Rule) bool {
		return slices.ContainsFunc(bound.Deny, func(d Rule) bool { return d.denies(r) })
	})
}

func (e Entries) rulesThat(match func(Rule) bool) ([]string, error) {
	p, err := Entries{Allow: e.Allow, Rules: e.Rules, SSH: e.SSH}.Policy()
	if err != nil {
		return nil, err
	}
	out := []string{}
	for _, r := range p.Allow {
		if match(r) {
			out = append(out, r.String())
		}
	}
	return sortedUnique(out), nil
}

// PrivateOutside returns the entries of allow_private that no entry of most, a list of
// the same form, includes completely. They are sorted.
func (e Entries) PrivateOutside(most []string) ([]string, error) {
	bound, err := Entries{AllowPrivate: most}.Policy()
	if err != nil {
		return nil, err
	}
	p, err := Entries{AllowPrivate: e.AllowPrivate}.Policy()
	if err != nil {
		return nil, err
	}
	out := []string{}
	for _, prefix := range p.Private {
		if !slices.ContainsFunc(bound.Private, func(b netip.Prefix) bool {
			return b.Bits() <= prefix.Bits() && b.Contains(prefix.Addr())
		}) {
			out = append(out, prefix.String())
		}
	}
	for _, r := range p.PrivateNames {
		if !slices.ContainsFunc(bound.PrivateNames, func(b Rule) bool { return b.includesHost(r) }) {
			out = append(out, r.String())
		}
	}
	return sortedUnique(out), nil
}
