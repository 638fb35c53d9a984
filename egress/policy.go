package egress

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/egress/hostrule"
)

// Entries is a policy in its written form, as in a manifest and in the built-in
// proxy's configuration file.
type Entries struct {
	// Allow contains allowlist entries, see [ParseListEntry]. An entry without a port
	// allows 80 and 443.
	Allow []string `json:"allow,omitempty"`
	// Rules allow single requests to hosts. A host with rules is reached by them only, also if
	// a wildcard of Allow includes it; an entry of Allow for the same host is an error.
	Rules []hostrule.Rule `json:"rules,omitempty"`
	// SSH contains ssh destinations, see [ParseSSHRule].
	SSH []string `json:"ssh,omitempty"`
	// Deny contains destinations that may not be reached, in the form of Allow:
	// exceptions from Allow and SSH, over which they win. An entry without a port
	// denies every port. An address is also denied to the names that resolve to it.
	Deny []string `json:"deny,omitempty"`
	// AllowPrivate contains destinations in special or private networks:
	// addresses, prefixes (10.1.2.0/24), and names (or *.name) that may resolve
	// to private addresses. It only lifts the restriction on private networks;
	// the destination must also be listed in Allow or SSH.
	AllowPrivate []string `json:"allow_private,omitempty"`
}

// Policy decides what may be reached. The zero value allows nothing.
type Policy struct {
	Allow []Rule
	// Deny wins over Allow.
	Deny []Rule
	// Private contains the special or private networks that may be reached.
	Private []netip.Prefix
	// PrivateNames contains the names, without ports, that may resolve to a
	// private address (RFC 1918, RFC 4193, RFC 6598), but not to a loopback or
	// link-local one.
	PrivateNames []Rule

	// rules are those of narrowed hosts, by host:port.
	rules map[string]*hostrule.Set
}

// Verdict is the decision about one request.
type Verdict struct {
	Allowed bool
	// Rule is the entry that allows the request, the one that denies it, or an
	// entry that lists the host but not the port.
	Rule string
	// Denied is set if an entry of the deny list refuses the request.
	Denied bool
	// Reason explains a refusal; empty if the request is allowed.
	Reason string
	// SSH allows a stream that is not TLS.
	SSH bool
	// Narrowed: each request in the tunnel has to be checked by [Policy.Requests].
	Narrowed bool
}

// NewPolicy parses a policy that consists of allowlist entries only. The error
// contains the index of the invalid entry.
func NewPolicy(entries []string) (Policy, error) {
	return Entries{Allow: entries}.Policy()
}

// Policy parses the entries. The error contains the list and the index of the
// invalid entry.
func (e Entries) Policy() (Policy, error) {
	var p Policy
	for i, s := range e.Allow {
		entry, err := ParseListEntry(s)
		if err != nil {
			return Policy{}, &entryError{"allow", i, err}
		}
		p.Allow = append(p.Allow, entry.Rules...)
	}
	if err := p.addRules(e); err != nil {
		return Policy{}, err
	}
	for i, s := range e.SSH {
		r, err := ParseSSHRule(s)
		if err == nil && p.rules[r.String()] != nil {
			err = fmt.Errorf("%s has rules for its requests, and ssh has none", r)
		}
		if err != nil {
			return Policy{}, &entryError{"ssh", i, err}
		}
		p.Allow = append(p.Allow, r)
	}
	for i, s := range e.Deny {
		entry, err := ParseListEntry(s)
		if err != nil {
			return Policy{}, &entryError{"deny", i, err}
		}
		p.Deny = append(p.Deny, entry.Rules...)
	}
	for i, s := range e.AllowPrivate {
		if err := p.addPrivate(s); err != nil {
			return Policy{}, &entryError{"allow_private", i, err}
		}
	}
	return p, nil
}

// entryError is an invalid entry in one of the lists of Entries.
type entryError struct {
	list  string // the list's JSON key
	index int
	err   error
}

func (e *entryError) Error() string { return fmt.Sprintf("%s[%d]: %v", e.list, e.index, e.err) }
func (e *entryError) Unwrap() error { return e.err }

func (p *Policy) addPrivate(entry string) error {
	if strings.Contains(entry, "/") && !strings.Contains(entry, "://") {
		prefix, err := parsePrefix(entry)
		if err == nil {
			p.Private = append(p.Private, prefix)
		}
		return err
	}
	r, err := ParseRule(entry)
	if err != nil {
		return err
	}
	if r.Port != 0 {
		return fmt.Errorf("unexpected port in %q: the ports of allow apply", shorten(entry))
	}
	if addr, err := netip.ParseAddr(r.Host); err == nil {
		p.Private = append(p.Private, netip.PrefixFrom(addr, addr.BitLen()))
		return nil
	}
	p.PrivateNames = append(p.PrivateNames, r)
	return nil
}

// parsePrefix parses a prefix such as 10.1.2.0/24. Bits set beyond the prefix
// length are an error, because they indicate a wrong length.
func parsePrefix(s string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(s)
	switch {
	case err != nil || prefix.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("invalid prefix %q: expected one such as 10.1.2.0/24", shorten(s))
	case prefix != prefix.Masked():
		return netip.Prefix{}, fmt.Errorf("invalid prefix %s: bits set beyond its length, expected %s", prefix, prefix.Masked())
	case prefix.Bits() == 0:
		return netip.Prefix{}, fmt.Errorf("invalid prefix %s: would allow every private network", prefix)
	}
	return prefix, nil
}

// Check decides whether host, a name or an address as sent by a client (without
// brackets), may be reached on port. It does not resolve names: the addresses
// of a name are checked when they are dialed.
func (p Policy) Check(host string, port int) Verdict {
	name, addr, err := normalHost(host)
	if err != nil {
		return Verdict{Reason: fmt.Sprintf("invalid host %q: %v", shorten(host), err)}
	}
	return p.check(name, addr.IsValid(), port)
}

// notAllowed is the prefix of a refusal's reason, in pipelock's log too.
const notAllowed = "domain not in allowlist: "

// check is Check for a host in canonical form.
func (p Policy) check(name string, isAddr bool, port int) Verdict {
	if entry := p.denied(name, isAddr, port); entry != "" {
		return Verdict{Rule: entry, Denied: true, Reason: fmt.Sprintf("denied by the entry %s: %s", entry, joinHostPort(name, port))}
	}
	v := Verdict{Reason: notAllowed + name}
	narrowed := p.narrows(name)
	for _, r := range p.Allow {
		switch {
		case !r.matchesHost(name, isAddr) || narrowed && !r.Narrowed && !r.SSH:
		case r.matchesPort(port):
			if !v.Allowed {
				v = Verdict{Allowed: true, Rule: r.String(), Narrowed: r.Narrowed}
			}
			// A web entry and an ssh entry may list the same host and port.
			v.SSH = v.SSH || r.SSH
		case !v.Allowed:
			v.Rule = r.String()
			v.Reason = "port not in allowlist: " + joinHostPort(name, port)
		}
	}
	return v
}

// PortRanges returns the ports that any entry allows, sorted and merged. Without
// entries it returns 443, so that the list is never empty.
func (p Policy) PortRanges() []PortRange {
	var all []PortRange
	for _, r := range p.Allow {
		all = append(all, r.ranges()...)
	}
	if len(all) == 0 {
		return []PortRange{{portHTTPS, portHTTPS}}
	}
	slices.SortFunc(all, func(a, b PortRange) int { return cmp.Compare(a.First, b.First) })
	merged := all[:1]
	for _, r := range all[1:] {
		last := &merged[len(merged)-1]
		if int(r.First) > int(last.Last)+1 {
			merged = append(merged, r)
		} else {
			last.Last = max(last.Last, r.Last)
		}
	}
	return merged
}

// Ports is PortRanges as a list of single ports.
func (p Policy) Ports() []uint16 {
	var ports []uint16
	for _, r := range p.PortRanges() {
		for port := int(r.First); port <= int(r.Last); port++ {
			ports = append(ports, uint16(port))
		}
	}
	return ports
}

// MixedPorts reports whether some host is allowed on a port that another one is
// not allowed on.
func (p Policy) MixedPorts() bool {
	all := p.PortRanges()
	byHost := map[string]Policy{}
	for _, r := range p.Allow {
		byHost[r.Host] = Policy{Allow: append(byHost[r.Host].Allow, r)}
	}
	for _, one := range byHost {
		if !slices.Equal(one.PortRanges(), all) {
			return true
		}
	}
	return false
}

// PlainHTTP returns the entries that allow port 80 by its number.
func (p Policy) PlainHTTP() []string {
	var entries []string
	for _, r := range p.Allow {
		if r.Port != 0 && !r.SSH && r.matchesPort(portHTTP) {
			entries = append(entries, r.String())
		}
	}
	return entries
}

// Covering returns an entry that allows what the rule describes, or a part of
// it; empty if there is none, or if the deny list denies all of it.
func (p Policy) Covering(rule Rule) string {
	if slices.ContainsFunc(p.Deny, func(d Rule) bool { return d.deniesAll(rule) }) {
		return ""
	}
	for _, r := range p.Allow {
		if r.allows(rule) && !slices.ContainsFunc(p.Deny, func(d Rule) bool { return d.denies(r) }) {
			return r.String()
		}
	}
	return ""
}

// Hosts returns the entries in canonical form, sorted, without duplicates.
func (p Policy) Hosts() []string {
	hosts := make([]string, 0, len(p.Allow))
	for _, r := range p.Allow {
		hosts = append(hosts, r.String())
	}
	return sortedUnique(hosts)
}
