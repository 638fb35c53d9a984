package egress

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Problem is a valid entry that does not work. It is an error for the caller to
// report.
type Problem struct {
	List  string // the entry's list, by its JSON key: "allow", "ssh", "deny", "allow_private"
	Entry string
	// Reason completes "allow entry X: ".
	Reason string
	// Advice is for the user; may be empty.
	Advice string
	// Harmless: the entry has no effect, but nothing that it names is refused
	// because of that. It calls for a warning rather than an error.
	Harmless bool
}

// Hint returns advice for the user.
func (p *Problem) Hint() string { return p.Advice }

func (p *Problem) Error() string { return fmt.Sprintf("%s entry %q: %s", p.List, p.Entry, p.Reason) }

// Problems returns the entries that can never work as they are, because every
// request that they allow would be refused, and those without any effect. own are
// the networks that only the sandbox and its proxy are in. Invalid entries are
// left out: [Entries.Policy] reports them.
func (e Entries) Problems(own ...netip.Prefix) []*Problem {
	p, err := e.Policy()
	if err != nil {
		return nil
	}
	deny := parsed(e.Deny, ParseListEntry)
	var out []*Problem
	for _, list := range []struct {
		name    string
		entries []ListEntry
		texts   []string
	}{
		{name: "allow", entries: parsed(e.Allow, ParseListEntry), texts: e.Allow},
		{name: "ssh", entries: parsed(e.SSH, parseSSHEntry), texts: e.SSH},
	} {
		for i, entry := range list.entries {
			if problem := p.entryProblem(entry, deny, own); problem != nil {
				problem.List, problem.Entry = list.name, list.texts[i]
				out = append(out, problem)
			}
		}
	}
	for _, r := range e.Rules {
		if problem := p.allowProblem(narrowedTarget(r), deny, own); problem != nil {
			problem.List, problem.Entry = "allow", r.Host
			out = append(out, problem)
		}
	}
	for i, entry := range deny {
		if all(entry.Rules, func(r Rule) bool { return !slices.ContainsFunc(p.Allow, r.overlapsHost) && !r.address().IsValid() }) {
			what := "this host"
			if entry.Preset != "" {
				what = "one of its hosts"
			}
			out = append(out, &Problem{
				List: "deny", Entry: e.Deny[i], Harmless: true,
				Reason: "has no effect: no entry allows " + what,
			})
		}
	}
	return append(out, p.privateProblems(e.AllowPrivate, own)...)
}

// parsed parses the entries of a list, which are valid.
func parsed(list []string, parse func(string) (ListEntry, error)) []ListEntry {
	out := make([]ListEntry, 0, len(list))
	for _, text := range list {
		if entry, err := parse(text); err == nil {
			out = append(out, entry)
		}
	}
	return out
}

// entryProblem checks an entry that allows destinations. A preset works as long as one
// of its hosts does: the others are exceptions from it.
func (p Policy) entryProblem(entry ListEntry, deny []ListEntry, own []netip.Prefix) *Problem {
	var first *Problem
	for _, r := range entry.Rules {
		problem := p.allowProblem(r, deny, own)
		if problem == nil {
			return nil
		}
		if first == nil {
			first = problem
		}
	}
	return first
}

// allowProblem checks a rule that allows a destination.
func (p Policy) allowProblem(r Rule, deny []ListEntry, own []netip.Prefix) *Problem {
	for _, d := range deny {
		if slices.ContainsFunc(d.Rules, func(one Rule) bool { return one.denies(r) }) {
			return &Problem{Reason: "always refused: denied by the entry " + d.String(), Advice: "remove one of the two entries"}
		}
	}
	if addr := r.address(); addr.IsValid() {
		return p.addressProblem(addr, own)
	}
	if r.isLocalhost() {
		return &Problem{Reason: "cannot be reached: resolves to a loopback address", Advice: hintOwn}
	}
	return nil
}

// isLocalhost reports whether the rule is for names that always resolve to a
// loopback address (RFC 6761 section 6.3).
func (r Rule) isLocalhost() bool {
	name := strings.TrimPrefix(r.Host, "*.")
	return name == "localhost" || strings.HasSuffix(name, ".localhost")
}

// hintOwn is advice about addresses of the sandbox itself.
const hintOwn = "programs inside the sandbox reach its own services directly, without the proxy and without an entry"

// addressProblem checks an address that an entry allows.
func (p Policy) addressProblem(addr netip.Addr, own []netip.Prefix) *Problem {
	kind := ""
	switch {
	case addr.IsUnspecified():
		kind = "the unspecified address"
	case addr.IsLoopback():
		kind = "a loopback address"
	case slices.ContainsFunc(own, func(n netip.Prefix) bool { return n.Contains(addr) }):
		kind = "an address of the sandbox itself"
	}
	if kind != "" {
		return &Problem{Reason: "cannot be reached: " + kind, Advice: hintOwn}
	}
	if addr.Is6() {
		return &Problem{Reason: "cannot be reached: sandboxes have no IPv6", Advice: "use a name or an IPv4 address"}
	}
	if newGuard(p.Private).SafeAddr(addr) == nil {
		return nil
	}
	return &Problem{
		Reason: "always refused: " + addressKind(addr) + " that allow_private does not list",
		Advice: fmt.Sprintf("add %s to egress.allow_private if the agent may reach it", addr),
	}
}

func addressKind(addr netip.Addr) string {
	switch {
	case addr.IsLinkLocalUnicast():
		return "a link-local address"
	case addr.IsMulticast():
		return "a multicast address"
	case addr.IsPrivate():
		return "a private address"
	}
	return "a special address"
}

// loopbacks are the addresses of the proxy's own network namespace that no packet
// leaves for.
var loopbacks = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("::/128"),
}

// opensLoopback reports whether a policy of one allow_private entry would let names
// resolve to the proxy itself.
func (p Policy) opensLoopback(own []netip.Prefix) bool {
	return slices.ContainsFunc(p.PrivateNames, Rule.isLocalhost) || slices.ContainsFunc(p.Private, func(n netip.Prefix) bool {
		return slices.ContainsFunc(loopbacks, n.Overlaps) ||
			slices.ContainsFunc(own, func(o netip.Prefix) bool { return o.Contains(n.Addr()) && o.Bits() <= n.Bits() })
	})
}

// privateProblems checks entries of allow_private: one that no allowed destination
// makes use of has no effect.
func (p Policy) privateProblems(entries []string, own []netip.Prefix) []*Problem {
	var out []*Problem
	for _, entry := range entries {
		one, err := Entries{AllowPrivate: []string{entry}}.Policy()
		if err != nil {
			continue
		}
		if one.opensLoopback(own) {
			out = append(out, &Problem{
				List: "allow_private", Entry: entry,
				Reason: "cannot be allowed: it includes addresses of the proxy itself", Advice: hintOwn,
			})
			continue
		}
		used := slices.ContainsFunc(p.Allow, func(r Rule) bool {
			addr := r.address()
			for _, n := range one.Private {
				if !addr.IsValid() || n.Contains(addr) { // a name may resolve to any address
					return true
				}
			}
			return slices.ContainsFunc(one.PrivateNames, r.overlapsHost)
		})
		if !used {
			out = append(out, &Problem{
				List: "allow_private", Entry: entry, Harmless: true,
				Reason: "has no effect: no entry of allow or ssh allows it", Advice: "add it to egress.allow too",
			})
		}
	}
	return out
}
