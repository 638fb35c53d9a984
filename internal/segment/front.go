package segment

import "net/netip"

// FrontUID is the user of the process that stands in front of pipelock and inserts secrets.
// The packet filter lets it connect to pipelock and to nothing else.
const FrontUID = 65533

// BehindPort is the TCP port on which pipelock listens behind that process, on loopback.
const BehindPort = 8889

// BehindAddrPort is where pipelock listens behind that process.
func BehindAddrPort() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), BehindPort)
}
