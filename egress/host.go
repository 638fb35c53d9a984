package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/idna"
)

const (
	maxName  = 253 // octets of a name without its trailing dot, RFC 1035 section 2.3.4
	maxLabel = 63
)

// lookupProfile maps a name as a browser does before looking it up (UTS 46),
// except that underscores are allowed: real host names contain them.
var lookupProfile = idna.New(
	idna.MapForLookup(),
	idna.BidiRule(),
	idna.StrictDomainName(false),
	idna.CheckJoiners(true),
)

// normalHost converts a DNS name or an IP literal to its canonical form for
// comparisons: lower-case ASCII without a trailing dot, or the address as
// [netip.Addr] prints it, with IPv4-mapped addresses as IPv4. The returned
// address is invalid for a name. The caller removes brackets.
func normalHost(host string) (string, netip.Addr, error) {
	if err := checkText(host); err != nil {
		return "", netip.Addr{}, err
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Zone() != "" {
			return "", netip.Addr{}, errors.New("an address with a zone cannot be reached through a proxy")
		}
		addr = addr.Unmap()
		return addr.String(), addr, nil
	}
	name, err := asciiName(host)
	if err != nil {
		return "", netip.Addr{}, err
	}
	return name, netip.Addr{}, checkName(name)
}

// checkText rejects what no host contains and what could change the meaning of
// a log line, an HTTP header or a C string.
func checkText(s string) error {
	switch {
	case s == "":
		return errors.New("empty host")
	case len(s) > 4*maxName: // an IDN is longer in UTF-8 than in the ASCII form checked below
		return fmt.Errorf("longer than %d characters", maxName)
	}
	for _, r := range s {
		switch {
		case r < 0x20, r == 0x7f, r >= 0x80 && r < 0xa0:
			return fmt.Errorf("contains a control character (%#x)", r)
		case r == ' ', r == 0xa0:
			return errors.New("contains a space")
		}
	}
	return nil
}

// asciiName lower-cases a name, removes one trailing dot and converts an IDN to
// its ASCII form.
func asciiName(host string) (string, error) {
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	if isASCII(name) && !strings.Contains(name, "xn--") {
		return name, nil
	}
	ascii, err := lookupProfile.ToASCII(name)
	if err != nil {
		return "", fmt.Errorf("invalid internationalized name: %w", err)
	}
	// The mapping can produce dots and upper-case letters, so the result is
	// normalized once more.
	return strings.ToLower(strings.TrimSuffix(ascii, ".")), nil
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// checkName checks a lower-case ASCII name against the rules for host names,
// with underscores allowed.
func checkName(name string) error {
	if len(name) > maxName {
		return fmt.Errorf("longer than %d characters", maxName)
	}
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if err := checkLabel(label); err != nil {
			return err
		}
	}
	// "127.1", "0x7f.1" and "2130706433" are names to DNS but addresses to
	// getaddrinfo and browsers; no such name exists.
	if isNumber(labels[len(labels)-1]) {
		return errors.New("looks like a number: expected an IPv4 address in dotted decimal")
	}
	return nil
}

func checkLabel(label string) error {
	switch {
	case label == "":
		return errors.New("empty label")
	case len(label) > maxLabel:
		return fmt.Errorf("label %.10s… is longer than %d characters", label, maxLabel)
	case label[0] == '-' || label[len(label)-1] == '-':
		return fmt.Errorf("label %q begins or ends with a hyphen", label)
	}
	for _, c := range []byte(label) {
		if !isNameByte(c) {
			return fmt.Errorf("invalid character %q", c)
		}
	}
	return nil
}

func isNameByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}

// isNumber reports whether a last label makes the host an IPv4 address to a
// lenient parser: decimal, octal or hexadecimal (WHATWG URL, "ends in a
// number").
func isNumber(label string) bool {
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}
