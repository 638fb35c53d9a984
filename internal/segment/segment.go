// Package segment holds the addresses of the internal segment, the network that joins
// an agent to its proxy. Each bottle has a segment of its own, so the addresses are
// the same in all of them.
package segment

import "net/netip"

// Addresses of the segment, each with the length of the segment's prefix.
var (
	Agent = netip.MustParsePrefix("10.77.0.2/30")
	Proxy = netip.PrefixFrom(Agent.Masked().Addr().Next(), Agent.Bits())
)

// ProxyPort is the TCP port that the proxy listens on.
const ProxyPort = 8888

// ProxyAddrPort is where the proxy listens.
func ProxyAddrPort() netip.AddrPort { return netip.AddrPortFrom(Proxy.Addr(), ProxyPort) }

// ProxyURL is the proxy's URL, as HTTP_PROXY takes it.
func ProxyURL() string { return "http://" + ProxyAddrPort().String() }
