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
	"time"

	"code.dny.dev/ssrf"
)

// Resolver is the part of net.Resolver that the proxy uses.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// refusalError is an error that the proxy answers itself.
type refusalError struct {
	status  int
	scanner string // what refused it, as pipelock's log has it
	reason  string
	rule    string
}

func (r *refusalError) Error() string { return r.reason }

// platformAddrs are special although the registries list them as ordinary.
var platformAddrs = []netip.Prefix{
	netip.MustParsePrefix("168.63.129.16/32"), // Azure's host, DNS and key endpoint
}

// privateNets are what a name that may be private can resolve to.
var privateNets = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("fc00::/7"),
}

// PrivateNets are the networks that a name may resolve to which the policy says
// may be private.
func PrivateNets() []netip.Prefix { return slices.Clone(privateNets) }

// dialer reaches hosts that a policy allows, by addresses that it has checked.
type dialer struct {
	resolver     Resolver
	guard        *ssrf.Guardian // for every host
	privateGuard *ssrf.Guardian // but for those in privateNames
	privateNames []Rule
	timeout      time.Duration
}

func newDialer(p Policy, r Resolver, timeout time.Duration) *dialer {
	if r == nil {
		r = &net.Resolver{PreferGo: true}
	}
	return &dialer{
		resolver: r, timeout: timeout, privateNames: p.PrivateNames,
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
		ssrf.WithAnyPort(), // ports are the policy's
		ssrf.WithAllowedV4Prefixes(v4...),
		ssrf.WithAllowedV6Prefixes(v6...),
		ssrf.WithDeniedV4Prefixes(platformAddrs...),
	)
}

// guardFor gives the guard for a host in its normal form. A rule for names
// never matches an address.
func (d *dialer) guardFor(host string) *ssrf.Guardian {
	_, err := netip.ParseAddr(host)
	for _, r := range d.privateNames {
		if r.matchesHost(host, err == nil) {
			return d.privateGuard
		}
	}
	return d.guard
}

// dial connects to a host in its normal form. All its addresses are checked
// before the first is dialled, and the one dialled once more by the socket's
// control hook, so that no answer of a resolver can slip between. An error
// that is the client's to hear is a *refusalError.
func (d *dialer) dial(ctx context.Context, host string, port int) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	addrs, err := d.resolve(ctx, host)
	if err != nil {
		return nil, err
	}
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
	if errors.Is(first, ssrf.ErrProhibitedIP) {
		return nil, &refusalError{status: http.StatusForbidden, scanner: "ssrf", reason: special(host, addrs[0])}
	}
	return nil, &refusalError{
		status: http.StatusBadGateway, scanner: "dial",
		reason: fmt.Sprintf("cannot connect to %s: %v", joinHostPort(host, port), first),
	}
}

// netDialer makes sockets that refuse to connect to what host may not reach.
func (d *dialer) netDialer(host string) *net.Dialer {
	return &net.Dialer{Control: d.guardFor(host).Safe, KeepAlive: 30 * time.Second}
}

// dialOne gives an address its share of the time that is left, so that a dead
// one does not eat the time of those after it.
func dialOne(ctx context.Context, nd *net.Dialer, to netip.AddrPort, left int) (*net.TCPConn, error) {
	if deadline, ok := ctx.Deadline(); ok {
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
		return nil, fmt.Errorf("dialling %s gave a %T", to, conn)
	}
	return tcp, nil
}

// resolve gives the addresses of a host, IPv4 first, if every one of them may
// be dialled. One that may not refuses the host: a public name with a private
// address beside its public ones is how rebinding begins.
func (d *dialer) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	addrs, err := d.lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	guard := d.guardFor(host)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
		if guard.SafeAddr(addrs[i]) != nil {
			return nil, &refusalError{status: http.StatusForbidden, scanner: "ssrf", reason: special(host, addrs[i])}
		}
	}
	slices.SortStableFunc(addrs, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	return addrs, nil
}

func (d *dialer) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{addr}, nil
	}
	// With the dot no search domain is tried: what is looked up is the name
	// that the policy allowed.
	addrs, err := d.resolver.LookupNetIP(ctx, "ip", host+".")
	if err == nil && len(addrs) == 0 {
		err = errors.New("no addresses")
	}
	if err != nil {
		return nil, &refusalError{
			status: http.StatusForbidden, scanner: "dns",
			reason: fmt.Sprintf("DNS lookup of %s failed: %s", host, dnsReason(err)),
		}
	}
	return addrs, nil
}

// dnsReason leaves out the resolver's address, which is the host's affair.
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

func special(host string, addr netip.Addr) string {
	if host == addr.String() {
		return fmt.Sprintf("SSRF: %s is a private or special address", host)
	}
	return fmt.Sprintf("SSRF: %s resolves to %s, a private or special address", host, addr)
}

// splitTarget takes a client's host:port apart. def is the port if there is
// none; 0 makes that an error. The host is not checked.
func splitTarget(target string, def int) (host string, port int, err error) {
	if def != 0 && !hasPort(target) {
		target += ":" + strconv.Itoa(def)
	}
	host, portText, err := net.SplitHostPort(target)
	if err != nil {
		return "", 0, fmt.Errorf("%q is not host:port", shorten(target))
	}
	port, err = parsePort(portText)
	return host, port, err
}

// hasPort tells host and [v6] from host:port and [v6]:port. The empty port of
// "host:" is the scheme's (RFC 3986 section 3.2.3), but no client writes it:
// it counts as a port and is refused.
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
