package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"code.dny.dev/ssrf"
)

// Resolver is the subset of net.Resolver that the proxy uses.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// refusalError is an error that the proxy reports to the client itself.
type refusalError struct {
	status  int
	scanner string // the check that refused it, named as in pipelock's log
	reason  string
	rule    string
}

func (r *refusalError) Error() string { return r.reason }

// platformAddrs are special addresses that the IANA registries list as ordinary.
var platformAddrs = []netip.Prefix{
	netip.MustParsePrefix("168.63.129.16/32"), // Azure's host, DNS and key endpoint
}

// privateNets are the networks that a name in allow_private may resolve to.
var privateNets = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("fc00::/7"),
}

// PrivateNets returns the networks that names in [Policy.PrivateNames] may
// resolve to.
func PrivateNets() []netip.Prefix { return slices.Clone(privateNets) }

// dialer connects to hosts that a policy allows, using only checked addresses.
type dialer struct {
	resolver     Resolver
	guard        *ssrf.Guardian // for all other hosts
	privateGuard *ssrf.Guardian // for hosts in privateNames
	privateNames []Rule
	policy       Policy // for denied addresses
	timeout      time.Duration
	lookups      chan struct{} // limits concurrent DNS lookups
	// self reports whether an address is the proxy's own listener; nil: none is.
	self func(netip.AddrPort) bool
}

func newDialer(p Policy, r Resolver, timeout time.Duration) *dialer {
	if r == nil {
		r = newResolver((&net.Dialer{}).DialContext)
	}
	return &dialer{
		resolver: r, timeout: timeout, privateNames: p.PrivateNames, policy: p,
		lookups:      make(chan struct{}, maxLookups),
		guard:        newGuard(p.Private),
		privateGuard: newGuard(slices.Concat(p.Private, privateNets)),
	}
}

func newGuard(allowed []netip.Prefix) *ssrf.Guardian {
	var v4, v6 []netip.Prefix
	for _, prefix := range allowed {
		if prefix.Addr().Is4() {
			v4 = append(v4, prefix)
		} else {
			v6 = append(v6, prefix)
		}
	}
	return ssrf.New(
		ssrf.WithAnyPort(), // ports are checked by the policy
		ssrf.WithAllowedV4Prefixes(v4...),
		ssrf.WithAllowedV6Prefixes(v6...),
		ssrf.WithDeniedV4Prefixes(platformAddrs...),
	)
}

// guardFor returns the guard for a normalized host. Rules for names never match
// an address.
func (d *dialer) guardFor(host string) *ssrf.Guardian {
	_, err := netip.ParseAddr(host)
	for _, r := range d.privateNames {
		if r.matchesHost(host, err == nil) {
			return d.privateGuard
		}
	}
	return d.guard
}

// dial connects to a normalized host. All its addresses are checked before the
// first is dialed, and the dialed address is checked again by the socket's
// control hook, so that a second DNS answer cannot bypass the check. Errors to
// report to the client are of type *refusalError.
func (d *dialer) dial(ctx context.Context, host string, port int) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	addrs, err := d.resolve(ctx, host)
	if err != nil {
		return nil, err
	}
	if ref := d.policy.refuseAddrs(host, addrs, port); ref != nil {
		return nil, ref
	}
	if d.self != nil {
		for _, addr := range addrs {
			if to := netip.AddrPortFrom(addr, uint16(port)); d.self(to) {
				return nil, &refusalError{status: http.StatusForbidden, scanner: "self", reason: fmt.Sprintf("%s is at %s, %v", host, to, errProxyAddress)}
			}
		}
	}
	addrs = slices.Clone(addrs[:min(len(addrs), maxAddrs)]) // frees the others
	nd := d.netDialer(host)
	var first error
	for i, addr := range addrs {
		conn, err := dialOne(ctx, nd, netip.AddrPortFrom(addr, uint16(port)), len(addrs)-i)
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = err
		}
	}
	switch {
	case errors.Is(first, errProxyAddress):
		return nil, &refusalError{status: http.StatusForbidden, scanner: "self", reason: first.Error()}
	case errors.Is(first, ssrf.ErrProhibitedIP):
		return nil, &refusalError{status: http.StatusForbidden, scanner: "ssrf", reason: ssrfReason(host, addrs[0])}
	}
	return nil, &refusalError{
		status: http.StatusBadGateway, scanner: "dial",
		reason: fmt.Sprintf("cannot connect to %s: %v", joinHostPort(host, port), first),
	}
}

// netDialer returns a dialer whose sockets refuse addresses that host may not
// resolve to, and the proxy itself.
func (d *dialer) netDialer(host string) *net.Dialer {
	guard := d.guardFor(host)
	control := func(network, address string, c syscall.RawConn) error {
		if to, err := netip.ParseAddrPort(address); err == nil && d.self != nil && d.self(to) {
			return fmt.Errorf("%s is %w", to, errProxyAddress)
		}
		return guard.Safe(network, address, c)
	}
	return &net.Dialer{Control: control, KeepAlive: 30 * time.Second}
}

// maxAddrs is how many addresses of a host are tried.
const maxAddrs = 16

// dialOne dials one address within its share of the remaining time, so that an
// unreachable address does not use up the time of the remaining ones.
func dialOne(ctx context.Context, nd *net.Dialer, to netip.AddrPort, left int) (*net.TCPConn, error) {
	if deadline, ok := ctx.Deadline(); ok && left > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(left))
		defer cancel()
	}
	conn, err := nd.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		_ = conn.Close()
		return nil, fmt.Errorf("dial %s: unexpected connection type %T", to, conn)
	}
	return tcp, nil
}

// resolve returns the addresses of a host, IPv4 first, if all of them may be
// dialed. A single forbidden address refuses the host: DNS rebinding mixes
// public and private addresses.
func (d *dialer) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	addrs, err := d.lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	guard := d.guardFor(host)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
		if guard.SafeAddr(addrs[i]) != nil {
			return nil, &refusalError{status: http.StatusForbidden, scanner: "ssrf", reason: ssrfReason(host, addrs[i])}
		}
	}
	slices.SortStableFunc(addrs, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	return addrs, nil
}

func (d *dialer) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{addr}, nil
	}
	select {
	case d.lookups <- struct{}{}:
		defer func() { <-d.lookups }()
	case <-ctx.Done():
		return nil, dnsRefusal(host, "too many lookups")
	}
	// The trailing dot disables search domains: only the name that the policy
	// allowed is looked up.
	addrs, err := d.resolver.LookupNetIP(ctx, "ip", host+".")
	if err == nil && len(addrs) == 0 {
		err = errors.New("no addresses")
	}
	if err != nil {
		return nil, dnsRefusal(host, dnsReason(err))
	}
	return addrs, nil
}

func dnsRefusal(host, why string) *refusalError {
	return &refusalError{
		status: http.StatusForbidden, scanner: "dns",
		reason: fmt.Sprintf("DNS lookup of %s failed: %s", host, why),
	}
}

// dnsReason omits the resolver's address, which must not be disclosed to the
// agent.
func dnsReason(err error) string {
	var dns *net.DNSError
	switch {
	case !errors.As(err, &dns):
		return err.Error()
	case dns.IsTimeout:
		return "timeout"
	}
	return dns.Err
}

func ssrfReason(host string, addr netip.Addr) string {
	if host == addr.String() {
		return fmt.Sprintf("SSRF: %s is a private or special address", host)
	}
	return fmt.Sprintf("SSRF: %s resolves to %s, a private or special address", host, addr)
}

// splitTarget splits a client's host:port. def is the port if there is none; if
// def is 0, a missing port is an error. The host is not checked.
func splitTarget(target string, def int) (host string, port int, err error) {
	if strings.ContainsAny(target, "/?#@") {
		// Some of it may be a secret: it must not get into the errors below.
		return "", 0, fmt.Errorf("invalid target %q: expected HOST:PORT", shorten(maskURL(target)))
	}
	if def != 0 && !hasPort(target) {
		target += ":" + strconv.Itoa(def)
	}
	host, portText, err := net.SplitHostPort(target)
	if err != nil {
		return "", 0, fmt.Errorf("invalid target %q: expected HOST:PORT", shorten(target))
	}
	port, err = parsePort(portText)
	return host, port, err
}

// hasPort distinguishes host and [v6] from host:port and [v6]:port. The empty
// port in "host:" would mean the scheme's default (RFC 3986 section 3.2.3), but
// clients do not send it: it counts as a port and is refused.
func hasPort(target string) bool {
	for i := len(target) - 1; i >= 0; i-- {
		switch target[i] {
		case ':':
			return true
		case ']':
			return false
		}
	}
	return false
}
