package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Default ports: HTTP and HTTPS for a rule without a port, SSH for an ssh entry.
const (
	portHTTP  = 80
	portHTTPS = 443
	portSSH   = 22
)

// Rule is one entry of a policy: a destination that may, or may not, be reached.
type Rule struct {
	// Host is a name in lower-case ASCII without a trailing dot, an address as
	// netip prints it, or "*." and a name: that name and all its subdomains.
	Host string
	// Port is the port of the rule, or the first one of a range. 0 means 80 and
	// 443 in an allowlist, and every port in a deny list.
	Port int
	// LastPort is the last port of a range; 0 for a single port.
	LastPort int
	// SSH allows a stream that is not TLS.
	SSH bool
	// Narrowed allows only the requests that the host's rules in Entries.Rules allow.
	Narrowed bool
}

// ParseRule parses an entry: a DNS name, *.name, an IPv4 address or an IPv6
// address (in brackets if a port follows), each with an optional :port or
// :first-last. In an allowlist an entry without a port means 80 and 443.
func ParseRule(entry string) (Rule, error) {
	r, err := parseRule(entry)
	if err != nil {
		return Rule{}, fmt.Errorf("invalid egress entry %q: %w", shorten(entry), err)
	}
	return r, nil
}

// ParseSSHRule parses an ssh entry: host[:port], without a range. The default
// port is 22.
func ParseSSHRule(entry string) (Rule, error) {
	r, err := ParseRule(entry)
	if err != nil {
		return Rule{}, err
	}
	if r.LastPort != 0 {
		return Rule{}, fmt.Errorf("invalid ssh entry %q: expected a single port", shorten(entry))
	}
	if r.Port == 0 {
		r.Port = portSSH
	}
	r.SSH = true
	return r, nil
}

func parseRule(entry string) (Rule, error) {
	if err := checkText(entry); err != nil {
		return Rule{}, err
	}
	if i := strings.Index(entry, "://"); i >= 0 {
		rest, _, _ := strings.Cut(entry[i+3:], "/")
		return Rule{}, fmt.Errorf("expected a host, not a URL: %q", shorten(rest))
	}
	if i := strings.IndexAny(entry, "/?#@"); i >= 0 {
		return Rule{}, fmt.Errorf("expected only a host: found %q", entry[i])
	}
	host, ports, err := splitEntry(entry)
	if err != nil {
		return Rule{}, err
	}
	var r Rule
	if ports != "" {
		if r.Port, r.LastPort, err = parsePorts(ports[1:]); err != nil {
			return Rule{}, err
		}
	}
	r.Host, err = parsePattern(host)
	return r, err
}

// splitEntry splits an entry into host and ports, which keep their colon. An
// IPv6 address without brackets has no port.
func splitEntry(entry string) (host, ports string, err error) {
	if rest, ok := strings.CutPrefix(entry, "["); ok {
		return splitBracketed(rest)
	}
	if strings.Count(entry, ":") > 1 {
		if _, err := netip.ParseAddr(entry); err != nil {
			return "", "", errors.New("more than one colon, but not an IPv6 address")
		}
		return entry, "", nil
	}
	if i := strings.IndexByte(entry, ':'); i >= 0 {
		return entry[:i], entry[i:], nil
	}
	return entry, "", nil
}

func splitBracketed(rest string) (host, ports string, err error) {
	host, ports, ok := strings.Cut(rest, "]")
	if addr, err := netip.ParseAddr(host); !ok || err != nil || !addr.Is6() {
		return "", "", errors.New("brackets must contain an IPv6 address")
	}
	if ports != "" && ports[0] != ':' {
		return "", "", errors.New("expected :port after the brackets")
	}
	return host, ports, nil
}

// parsePorts parses a port, or a range of ports such as 3000-3010.
func parsePorts(s string) (first, last int, err error) {
	firstText, lastText, isRange := strings.Cut(s, "-")
	if first, err = parsePort(firstText); err != nil || !isRange {
		return first, 0, err
	}
	if last, err = parsePort(lastText); err != nil {
		return 0, 0, err
	}
	if last <= first {
		return 0, 0, fmt.Errorf("invalid port range %q: expected first-last", shorten(s))
	}
	return first, last, nil
}

// parsePort accepts 1 to 65535 in decimal digits, without sign or leading zero.
func parsePort(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '0' {
		return 0, fmt.Errorf("invalid port %q (1 to 65535)", shorten(s))
	}
	return int(n), nil
}

func parsePattern(host string) (string, error) {
	if host == "*" {
		return "", errors.New("a single * would allow every host: expected *.name")
	}
	base, wild := strings.CutPrefix(host, "*.")
	if strings.Contains(base, "*") {
		return "", errors.New("a wildcard is only supported at the start, as in *.name")
	}
	name, addr, err := normalHost(base)
	if err != nil {
		return "", err
	}
	if !wild {
		return name, nil
	}
	if addr.IsValid() {
		return "", errors.New("a wildcard for an address: an address has no subdomains")
	}
	return "*." + name, nil
}

// String returns an entry that parses to the rule, except for SSH.
func (r Rule) String() string {
	if r.Port == 0 {
		return r.Host
	}
	text := joinHostPort(r.Host, r.Port)
	if r.LastPort != 0 {
		text += "-" + strconv.Itoa(r.LastPort)
	}
	return text
}

func (r Rule) matchesHost(host string, isAddr bool) bool {
	base, wild := strings.CutPrefix(r.Host, "*.")
	if !wild {
		return host == r.Host
	}
	if isAddr {
		return false
	}
	return host == base || strings.HasSuffix(host, r.Host[1:])
}

// matchesPort is for a rule of an allowlist.
func (r Rule) matchesPort(port int) bool {
	if r.Port == 0 {
		return port == portHTTPS || port == portHTTP
	}
	return port == r.Port || port > r.Port && port <= r.LastPort
}

// deniesPort is for a rule of a deny list.
func (r Rule) deniesPort(port int) bool {
	return r.Port == 0 || r.matchesPort(port)
}

// allows reports whether a rule of an allowlist allows a port that target, a
// host or host:port, describes.
func (r Rule) allows(target Rule) bool {
	if !r.overlapsHost(target) {
		return false
	}
	if target.Port == 0 {
		return true
	}
	for _, ports := range r.ranges() {
		if int(ports.First) <= max(target.Port, target.LastPort) && target.Port <= int(ports.Last) {
			return true
		}
	}
	return false
}

// denies reports whether a rule of a deny list denies every host and port that
// target describes, an entry of an allowlist.
func (r Rule) denies(target Rule) bool {
	if !r.includesHost(target) {
		return false
	}
	for _, ports := range target.ranges() {
		if !r.deniesPort(int(ports.First)) || !r.deniesPort(int(ports.Last)) {
			return false
		}
	}
	return true
}

// deniesAll reports whether a rule of a deny list denies everything that target,
// a host or host:port, describes; without a port that is every port.
func (r Rule) deniesAll(target Rule) bool {
	if target.Port == 0 {
		return r.Port == 0 && r.includesHost(target)
	}
	return r.denies(target)
}

// includesHost reports whether every host of other is one of r.
func (r Rule) includesHost(other Rule) bool {
	if r.Host == other.Host {
		return true
	}
	base, _ := strings.CutPrefix(other.Host, "*.")
	return strings.HasPrefix(r.Host, "*.") && r.matchesHost(base, other.address().IsValid())
}

func (r Rule) overlapsHost(other Rule) bool {
	return r.includesHost(other) || other.includesHost(r)
}

// address is the address of a rule; invalid for a name.
func (r Rule) address() netip.Addr {
	addr, err := netip.ParseAddr(r.Host)
	if err != nil {
		return netip.Addr{}
	}
	return addr
}

// PortRange is a range of ports, both ends included.
type PortRange struct{ First, Last uint16 }

// ranges are the ports that a rule of an allowlist allows.
func (r Rule) ranges() []PortRange {
	if r.Port == 0 {
		return []PortRange{{portHTTP, portHTTP}, {portHTTPS, portHTTPS}}
	}
	return []PortRange{{uint16(r.Port), uint16(max(r.Port, r.LastPort))}}
}

// joinHostPort is net.JoinHostPort for a numeric port.
func joinHostPort(host string, port int) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + strconv.Itoa(port)
}

// shorten limits untrusted text in a message.
func shorten(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// sortedUnique sorts in place and removes duplicates.
func sortedUnique(s []string) []string {
	slices.Sort(s)
	return slices.Compact(s)
}
