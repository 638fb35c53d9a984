package egress

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Entries is a policy as it is written down: in the proxy's configuration file,
// and by the root package from a manifest.
type Entries struct {
	// Allow are allowlist entries, see [ParseRule].
	Allow []string `json:"allow"`
	// SSH are destinations for ssh, see [ParseSSHRule].
	SSH []string `json:"ssh,omitempty"`
	// AllowPrivate are destinations in special or private networks, named on
	// purpose: addresses, prefixes (10.1.2.0/24), and names (or *.name) that
	// may resolve to private addresses. They allow nothing that Allow or SSH
	// does not allow too.
	AllowPrivate []string `json:"allow_private,omitempty"`
}

// Policy says what may be reached. The zero value allows nothing.
type Policy struct {
	Allow []Rule
	// Private are special or private networks that may be reached.
	Private []netip.Prefix
	// PrivateNames, without ports, may resolve to any private address
	// (RFC 1918, RFC 4193, RFC 6598), but not to loopback or link-local ones.
	PrivateNames []Rule
}

// Verdict is the answer to one request.
type Verdict struct {
	Allowed bool
	// Rule is the entry that allows it; or the entry that has the host, but
	// not the port.
	Rule string
	// Reason says why it is refused; empty if it is not.
	Reason string
	// SSH: the stream need not be TLS.
	SSH bool
}

// NewPolicy makes a policy of allowlist entries alone. The error names the
// entry at fault by its index.
func NewPolicy(entries []string) (Policy, error) {
	return Entries{Allow: entries}.Policy()
}

// Policy parses the entries. The error names the list and the index of the
// entry at fault.
func (e Entries) Policy() (Policy, error) {
	var p Policy
	for i, s := range e.Allow {
		r, err := ParseRule(s)
		if err != nil {
			return Policy{}, &entryError{"allow", i, err}
		}
		p.Allow = append(p.Allow, r)
	}
	for i, s := range e.SSH {
		r, err := ParseSSHRule(s)
		if err != nil {
			return Policy{}, &entryError{"ssh", i, err}
		}
		p.Allow = append(p.Allow, r)
	}
	for i, s := range e.AllowPrivate {
		if err := p.addPrivate(s); err != nil {
			return Policy{}, &entryError{"allow_private", i, err}
		}
	}
	return p, nil
}

// entryError is a mistake in one entry of one of the lists of Entries.
type entryError struct {
	list  string // its key in JSON
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
		return fmt.Errorf("%q has a port: the ports are those of the allowlist", shorten(entry))
	}
	if addr, err := netip.ParseAddr(r.Host); err == nil {
		p.Private = append(p.Private, netip.PrefixFrom(addr, addr.BitLen()))
		return nil
	}
	p.PrivateNames = append(p.PrivateNames, r)
	return nil
}

// parsePrefix takes 10.1.2.0/24. Bits set beyond the prefix's length are an
// error: they are a sign of a wrong length.
func parsePrefix(s string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(s)
	switch {
	case err != nil || prefix.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("%q is not a prefix such as 10.1.2.0/24", shorten(s))
	case prefix != prefix.Masked():
		return netip.Prefix{}, fmt.Errorf("%s has bits set beyond its length: write %s", prefix, prefix.Masked())
	case prefix.Bits() == 0:
		return netip.Prefix{}, fmt.Errorf("%s would open every private network: name the one that is meant", prefix)
	}
	return prefix, nil
}

// Check says whether host, a name or an address as a client wrote it (without
// brackets), may be reached on port. It looks nothing up: the addresses that a
// name has are checked when they are dialled.
func (p Policy) Check(host string, port int) Verdict {
	name, addr, err := normalHost(host)
	if err != nil {
		return Verdict{Reason: fmt.Sprintf("not a host: %q: %v", shorten(host), err)}
	}
	return p.check(name, addr.IsValid(), port)
}

// notAllowed begins the reason of a refusal, pipelock's too.
const notAllowed = "domain not in allowlist: "

// check is Check for a host in its normal form.
func (p Policy) check(name string, isAddr bool, port int) Verdict {
	v := Verdict{Reason: notAllowed + name}
	for _, r := range p.Allow {
		switch {
		case !r.matchesHost(name, isAddr):
		case r.matchesPort(port):
			if !v.Allowed {
				v = Verdict{Allowed: true, Rule: r.String()}
			}
			// A web entry and an ssh entry may name the same host and port.
			v.SSH = v.SSH || r.SSH
		case !v.Allowed:
			v.Rule = r.String()
			v.Reason = "port not in allowlist: " + joinHostPort(name, port)
		}
	}
	return v
}

// Ports are those that some entry allows, sorted; 443 where there is no entry, so
// that the list is never empty.
func (p Policy) Ports() []uint16 {
	var ports []uint16
	for _, r := range p.Allow {
		if r.Port == 0 {
			ports = append(ports, portHTTPS, portHTTP)
		} else {
			ports = append(ports, uint16(r.Port))
		}
	}
	if len(ports) == 0 {
		return []uint16{portHTTPS}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// MixedPorts tells whether some host is not allowed on a port that another is
// allowed on.
func (p Policy) MixedPorts() bool {
	all := len(p.Ports())
	byHost := map[string]Policy{}
	for _, r := range p.Allow {
		byHost[r.Host] = Policy{Allow: append(byHost[r.Host].Allow, r)}
	}
	for _, one := range byHost {
		if len(one.Ports()) != all {
			return true
		}
	}
	return false
}

// Covering is an entry that allows what a rule names, or a part of it; empty if
// there is none.
func (p Policy) Covering(rule Rule) string {
	base, _ := strings.CutPrefix(rule.Host, "*.")
	_, addr, _ := normalHost(base) // a rule's host is in its normal form
	for _, r := range p.Allow {
		samePort := rule.Port == 0 || r.matchesPort(rule.Port)
		if samePort && (r.Host == rule.Host || base == rule.Host && r.matchesHost(base, addr.IsValid())) {
			return r.String()
		}
	}
	return ""
}

// Hosts are the entries in their normal form, sorted, without doubles.
func (p Policy) Hosts() []string {
	hosts := make([]string, 0, len(p.Allow))
	for _, r := range p.Allow {
		hosts = append(hosts, r.String())
	}
	return sortedUnique(hosts)
}
