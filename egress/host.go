package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/idna"
)

const (
	maxName  = 253 // octets of a name without its last dot, RFC 1035 section 2.3.4
	maxLabel = 63
)

// lookupProfile maps a name as a browser does before it looks it up (UTS 46),
// but for underscores, which real host names have.
var lookupProfile = idna.New(
	idna.MapForLookup(),
	idna.BidiRule(),
	idna.StrictDomainName(false),
	idna.CheckJoiners(true),
)

// normalHost brings a DNS name or an IP literal to the one form in which it is
// compared: lower-case ASCII without a trailing dot, or the address as
// [netip.Addr] prints it, IPv4-mapped ones as IPv4. The address is invalid for
// a name. Brackets are the caller's to remove.
func normalHost(host string) (string, netip.Addr, error) {
	if err := plainText(host); err != nil {
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

// plainText refuses what no host has and what could change the meaning of a
// log line, an HTTP header or a C string.
func plainText(s string) error {
	switch {
	case s == "":
		return errors.New("it is empty")
	case len(s) > 4*maxName: // an IDN is longer in UTF-8 than what is checked below
		return fmt.Errorf("it is longer than %d characters", maxName)
	}
	for _, r := range s {
		switch {
		case r < 0x20, r == 0x7f, r >= 0x80 && r < 0xa0:
			return fmt.Errorf("it has a control character (%#x)", r)
		case r == ' ', r == 0xa0:
			return errors.New("it has a space")
		}
	}
	return nil
}

// asciiName lower-cases a name, drops one trailing dot and turns an IDN into
// its ASCII form.
func asciiName(host string) (string, error) {
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	if isASCII(name) && !strings.Contains(name, "xn--") {
		return name, nil
	}
	ascii, err := lookupProfile.ToASCII(name)
	if err != nil {
		return "", fmt.Errorf("not a valid internationalised name: %w", err)
	}
	// Mapping can turn other dots into dots, and other letters into upper case
	// ones: what is compared is what came out.
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

// checkName holds a lower-case ASCII name against the rules for host names,
// with underscores allowed.
func checkName(name string) error {
	if len(name) > maxName {
		return fmt.Errorf("it is longer than %d characters", maxName)
	}
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if err := checkLabel(label); err != nil {
			return err
		}
	}
	// "127.1", "0x7f.1" and "2130706433" are names to DNS but addresses to
	// getaddrinfo and browsers; none of them is a name that exists.
	if numeric(labels[len(labels)-1]) {
		return errors.New("it looks like a number: write an address as four decimal parts")
	}
	return nil
}

func checkLabel(label string) error {
	switch {
	case label == "":
		return errors.New("it has an empty label")
	case len(label) > maxLabel:
		return fmt.Errorf("its label %.10s… is longer than %d characters", label, maxLabel)
	case label[0] == '-' || label[len(label)-1] == '-':
		return fmt.Errorf("its label %q begins or ends with a hyphen", label)
	}
	for _, c := range []byte(label) {
		if !nameByte(c) {
			return fmt.Errorf("%q cannot be part of a host name", c)
		}
	}
	return nil
}

func nameByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}

// numeric tells whether a last label makes the whole host an IPv4 address to a
// lenient parser: decimal, octal or hexadecimal (WHATWG URL, "ends in a
// number").
func numeric(label string) bool {
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}
