package egress

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// UnsupportedError is what a policy needs and a proxy cannot do.
type UnsupportedError struct {
	List, Entry string // as in [Problem]
	Reason      string
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("%s entry %q: not supported by pipelock: %s", e.List, e.Entry, e.Reason)
}

// Hint returns advice for the user.
func (e *UnsupportedError) Hint() string {
	return "change the entry, or use the built-in proxy with --proxy builtin or proxy.kind: builtin"
}

// maxFilterPorts limits the ports that the packet filter enforces for pipelock.
const maxFilterPorts = 4096

// CheckPipelock checks that a release of pipelock can enforce the policy, together
// with a packet filter that enforces [Policy.Ports]. The error joins an
// [*UnsupportedError] for each entry that it cannot.
func (p Policy) CheckPipelock(v PipelockVersion) error {
	var errs []error
	fail := func(list, entry, format string, args ...any) {
		errs = append(errs, &UnsupportedError{List: list, Entry: entry, Reason: fmt.Sprintf(format, args...)})
	}
	for _, r := range p.Allow {
		list := "allow"
		if r.SSH {
			list = "ssh"
		}
		if r.Narrowed {
			fail(list, r.String(), "it does not read requests, which the rules of this host are about")
			continue
		}
		if reason := v.rejectsHost(r, true); reason != "" {
			fail(list, r.String(), "%s", reason)
		}
		if n := r.LastPort - r.Port + 1; n > maxFilterPorts {
			fail(list, r.String(), "%d ports (at most %d)", n, maxFilterPorts)
		}
	}
	for _, r := range p.Deny {
		switch {
		case r.Port != 0:
			fail("deny", r.String(), "it denies a host on every port only")
		case r.address().IsValid():
			fail("deny", r.String(), "it denies no address to names that resolve to it")
		default:
			if reason := v.rejectsHost(r, false); reason != "" {
				fail("deny", r.String(), "%s", reason)
			}
		}
	}
	for _, r := range p.PrivateNames {
		reason := v.rejectsHost(r, true)
		if base, wild := strings.CutPrefix(r.Host, "*."); wild && !strings.Contains(base, ".") {
			reason = "a wildcard needs at least two labels, as in *.corp.example"
		}
		if !v.atLeast(pipelockPrivate) {
			reason = fmt.Sprintf("private destinations need %s or later", pipelockPrivate)
		}
		if reason != "" {
			fail("allow_private", r.String(), "%s", reason)
		}
	}
	for _, n := range p.Private {
		if !v.atLeast(pipelockPrivate) {
			fail("allow_private", n.String(), "private destinations need %s or later", pipelockPrivate)
		}
	}
	return errors.Join(errs...)
}

// rejectsHost returns why pipelock would not start with a host in one of its lists;
// empty if it would. Broad wildcards are accepted in its list of denied hosts.
func (v PipelockVersion) rejectsHost(r Rule, broad bool) string {
	if !v.atLeast(pipelockStrictHosts) {
		return ""
	}
	base, wild := strings.CutPrefix(r.Host, "*.")
	if strings.Contains(base, "_") {
		return "a host name with an underscore"
	}
	if r.address().Is6() {
		return "an IPv6 address"
	}
	if !wild || !broad {
		return ""
	}
	if suffix, icann := publicsuffix.PublicSuffix(base); !strings.Contains(base, ".") || icann && suffix == base {
		return "a wildcard for a whole top-level domain or public suffix"
	}
	return ""
}
