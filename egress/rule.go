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

// Rule is one allowlist entry: a destination that may be reached.
type Rule struct {
	// Host is a name in lower-case ASCII without a trailing dot, an address as
	// netip prints it, or "*." and a name: that name and all its subdomains.
	Host string
	// Port is the only port that the rule allows; 0 allows 80 and 443.
	Port int
	// SSH allows a stream that is not TLS.
	SSH bool
}

// ParseRule parses an allowlist entry: a DNS name, *.name, an IPv4 address or an
// IPv6 address (in brackets if a port follows), each with an optional :port. An
// entry without a port allows 80 and 443.
func ParseRule(entry string) (Rule, error) {
	r, err := parseRule(entry)
	if err != nil {
		return Rule{}, fmt.Errorf("invalid egress entry %q: %w", shorten(entry), err)
	}
	return r, nil
}

// ParseSSHRule parses an ssh entry: host[:port]. The default port is 22.
func ParseSSHRule(entry string) (Rule, error) {
	r, err := ParseRule(entry)
	if err != nil {
		return Rule{}, err
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
	host, port, err := splitEntry(entry)
	if err != nil {
		return Rule{}, err
	}
	pattern, err := parsePattern(host)
	if err != nil {
		return Rule{}, err
	}
	return Rule{Host: pattern, Port: port}, nil
}

// splitEntry splits an entry into host and port. An IPv6 address without
// brackets has no port.
func splitEntry(entry string) (host string, port int, err error) {
	if rest, ok := strings.CutPrefix(entry, "["); ok {
		return splitBracketed(rest)
	}
	if strings.Count(entry, ":") > 1 {
		if _, err := netip.ParseAddr(entry); err != nil {
			return "", 0, errors.New("more than one colon, but not an IPv6 address")
		}
		return entry, 0, nil
	}
	host, portText, found := strings.Cut(entry, ":")
	if found {
		port, err = parsePort(portText)
	}
	return host, port, err
}

func splitBracketed(rest string) (host string, port int, err error) {
	host, after, ok := strings.Cut(rest, "]")
	if addr, err := netip.ParseAddr(host); !ok || err != nil || !addr.Is6() {
		return "", 0, errors.New("brackets must contain an IPv6 address")
	}
	if after == "" {
		return host, 0, nil
	}
	portText, ok := strings.CutPrefix(after, ":")
	if !ok {
		return "", 0, errors.New("expected :port after the brackets")
	}
	port, err = parsePort(portText)
	return host, port, err
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
		return "", errors.New("an address has no subdomains: remove the *.")
	}
	return "*." + name, nil
}

// String returns an entry that parses to the rule, except for SSH.
func (r Rule) String() string {
	if r.Port == 0 {
		return r.Host
	}
	return joinHostPort(r.Host, r.Port)
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

func (r Rule) matchesPort(port int) bool {
	if r.Port == 0 {
		return port == portHTTPS || port == portHTTP
	}
	return port == r.Port
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
