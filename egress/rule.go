package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Default ports: those of a rule that names none, and that of an ssh entry.
const (
	portHTTP  = 80
	portHTTPS = 443
	portSSH   = 22
)

// Rule is one entry of an allowlist: a destination that may be reached.
type Rule struct {
	// Host is a name in lower-case ASCII without a trailing dot, an address as
	// netip prints it, or "*." and a name: that name and all below it.
	Host string
	// Port is the one port that the rule allows; 0 allows 443 and 80.
	Port int
	// SSH says that a stream which is not TLS may pass.
	SSH bool
}

// ParseRule reads an allowlist entry: a DNS name, *.name, an IPv4 address, an
// IPv6 address (in brackets if a port follows), each with an optional :port.
func ParseRule(entry string) (Rule, error) {
	r, err := parseRule(entry)
	if err != nil {
		return Rule{}, fmt.Errorf("egress entry %q: %w", shorten(entry), err)
	}
	return r, nil
}

// ParseSSHRule reads an entry for ssh: host[:port], port 22 if none is given.
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
	if err := plainText(entry); err != nil {
		return Rule{}, err
	}
	if i := strings.Index(entry, "://"); i >= 0 {
		rest, _, _ := strings.Cut(entry[i+3:], "/")
		return Rule{}, fmt.Errorf("it is a URL: write the host only, %q", shorten(rest))
	}
	if i := strings.IndexAny(entry, "/?#@"); i >= 0 {
		return Rule{}, fmt.Errorf("it has a %q: write the host only", entry[i])
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

// splitEntry takes the port, if there is one, off an entry. An IPv6 address
// without brackets has no port.
func splitEntry(entry string) (host string, port int, err error) {
	if rest, ok := strings.CutPrefix(entry, "["); ok {
		return splitBracketed(rest)
	}
	if strings.Count(entry, ":") > 1 {
		if _, err := netip.ParseAddr(entry); err != nil {
			return "", 0, errors.New("it has more than one colon and is not an IPv6 address")
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
		return "", 0, errors.New("brackets hold an IPv6 address, and only that")
	}
	if after == "" {
		return host, 0, nil
	}
	portText, ok := strings.CutPrefix(after, ":")
	if !ok {
		return "", 0, errors.New("only a port can follow the brackets")
	}
	port, err = parsePort(portText)
	return host, port, err
}

// parsePort takes 1 to 65535 in plain decimal digits, no sign, no leading zero.
func parsePort(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '0' {
		return 0, fmt.Errorf("%q is not a port (1 to 65535)", shorten(s))
	}
	return int(n), nil
}

func parsePattern(host string) (string, error) {
	if host == "*" {
		return "", errors.New("a * alone would allow everything: write *.name")
	}
	base, wild := strings.CutPrefix(host, "*.")
	if strings.Contains(base, "*") {
		return "", errors.New("a * can only stand at the beginning, as in *.name")
	}
	name, addr, err := normalHost(base)
	if err != nil {
		return "", err
	}
	if !wild {
		return name, nil
	}
	if addr.IsValid() {
		return "", errors.New("an address has nothing below it: leave the *. out")
	}
	return "*." + name, nil
}

// String is the rule as an entry that parses to it, but for SSH.
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

// joinHostPort is net.JoinHostPort for a port that is a number.
func joinHostPort(host string, port int) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + strconv.Itoa(port)
}

// shorten keeps a text that came from outside from filling a message.
func shorten(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// sortedUnique sorts in place and drops doubles.
func sortedUnique(s []string) []string {
	slices.Sort(s)
	return slices.Compact(s)
}
