package egress

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// errProxyAddress means that a request would reach the proxy itself.
var errProxyAddress = errors.New("the egress proxy itself")

// isProxy reports whether a connection to an address reaches the proxy's listener.
// No policy allows that: a request could be sent round and round.
func (s *Server) isProxy(to netip.AddrPort) bool {
	l := s.listen.Load()
	if l == nil || to.Port() != l.Port() {
		return false
	}
	// Linux connects to loopback if the address is unspecified.
	addr := to.Addr().Unmap()
	return addr == l.Addr().Unmap() || addr.IsUnspecified() && l.Addr().IsLoopback()
}

// ownAddress describes a host that is the sandbox, or the proxy, as the agent sees
// them; "" for others. From there a client has to connect directly.
func (s *Server) ownAddress(r *http.Request, host string) string {
	const sandbox = "the sandbox's own address: connect to it without the proxy"
	addr, err := netip.ParseAddr(host)
	if err != nil {
		if host == "localhost" || strings.HasSuffix(host, ".localhost") || slices.Contains(s.selfNames, host) {
			return sandbox
		}
		return ""
	}
	switch l := s.listen.Load(); {
	case addr.IsLoopback(), addr.IsUnspecified(), addr == clientAddr(r):
		return sandbox
	case l != nil && addr == l.Addr().Unmap():
		return errProxyAddress.Error()
	}
	return ""
}

func clientAddr(r *http.Request) netip.Addr {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return from.Addr().Unmap()
}

// explainSelf replaces the refusal of a host that is the sandbox itself: the policy
// is not the reason, and an entry in it would not help.
func (s *Server) explainSelf(r *http.Request, host string, ref *refusalError) *refusalError {
	switch ref.scanner {
	case "allowlist", "port", "ssrf", "dns":
	default:
		return ref
	}
	own := s.ownAddress(r, host)
	if own == "" {
		return ref
	}
	return &refusalError{
		status: http.StatusForbidden, scanner: "self", rule: ref.rule,
		reason: fmt.Sprintf("%s is %s", host, own),
	}
}

// dialRefusal is the refusal that an error of [dialer.dial] wraps.
func (s *Server) dialRefusal(r *http.Request, host string, err error) *refusalError {
	return s.explainSelf(r, host, asRefusal(err))
}

func listenAddr(l net.Listener) *netip.AddrPort {
	tcp, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return nil
	}
	addr := tcp.AddrPort()
	return &addr
}
