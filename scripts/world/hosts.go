package main

import (
	"net/netip"
	"slices"
)

// The public-looking addresses are in 198.51.101.0/24, beside TEST-NET-2 and
// not in it: a proxy refuses the special-purpose ranges of RFC 6890.
var (
	addrDNS      = netip.MustParseAddr("198.51.101.53")
	addrMessages = netip.MustParseAddr("198.51.101.14")
	addrPrivate  = netip.MustParseAddr("10.99.0.10")
	addrMetadata = netip.MustParseAddr("169.254.169.254")
	addrFlip     = netip.MustParseAddr("198.51.101.10")
	addrVictim   = netip.MustParseAddr("198.51.101.66")
	// The metadata service's address on an IPv6 network, and what addrPrivate is
	// to a host behind a NAT64 (RFC 6052).
	addrMetadata6 = netip.MustParseAddr("fd00:ec2::254")
	addrNAT64     = netip.MustParseAddr("64:ff9b::a63:a")
)

// site is a web server: the name it gives itself in its answers and where it
// listens. tls says whether it listens on 443 beside 80.
type site struct {
	name string
	addr netip.Addr
	tls  bool
}

var webSites = []site{
	{"allowed.test", netip.MustParseAddr("198.51.101.10"), true},
	{"refused.test", netip.MustParseAddr("198.51.101.11"), true},
	{"sub.wild.test", netip.MustParseAddr("198.51.101.15"), true},
	{"wild.test", netip.MustParseAddr("198.51.101.16"), true},
	{"private.test", addrPrivate, true},
	{"meta.test", addrMetadata, false},
	{"v6.test", netip.MustParseAddr("2001:db8:77::10"), true},
	{"private6.test", netip.MustParseAddr("fd00:99::10"), true},
}

// gitSites serve git over HTTPS only.
var gitSites = []site{
	{"git.allowed.test", netip.MustParseAddr("198.51.101.12"), true},
	{"git.refused.test", netip.MustParseAddr("198.51.101.13"), true},
}

// victims hold what nothing may reach: public, private (RFC 1918), shared (RFC
// 6598) and link-local addresses, and a resolver that many programs know by heart.
var victims = []netip.Addr{
	netip.MustParseAddr("198.51.101.66"),
	netip.MustParseAddr("8.8.8.8"),
	addrPrivate,
	netip.MustParseAddr("172.31.99.10"),
	netip.MustParseAddr("192.168.99.10"),
	netip.MustParseAddr("100.64.99.10"),
	addrMetadata,
	netip.MustParseAddr("2001:db8:77::66"),
	netip.MustParseAddr("fd00:99::10"),
	addrMetadata6,
	addrNAT64,
}

// sshSites serve git over ssh, with keys of their own, on each of sshPorts.
var sshSites = []site{
	{name: "ssh.allowed.test", addr: netip.MustParseAddr("198.51.101.22")},
	{name: "ssh.other.test", addr: netip.MustParseAddr("198.51.101.23")},
}

var sshPorts = []uint16{22, 2222}

var (
	victimTCPPorts = []uint16{22, 25, 53, 80, 443, 2375, 4444, 8080, 9999}
	victimUDPPorts = []uint16{53, 123, 443, 9999}
)

// zone is the DNS server's whole knowledge, beside flipName.
var zone = makeZone()

// flipName's address changes with each query: a web server first, then a
// private address. It catches a check of an address that is then not dialled.
const flipName = "flip.test"

func makeZone() map[string][]netip.Addr {
	names := map[string][]netip.Addr{
		"api.anthropic.com": {addrMessages},
		"victim.test":       {addrVictim, netip.MustParseAddr("2001:db8:77::66")},
		// Names with more than one kind of address, or one that is no host's.
		"mixed.test":    {addrFlip, addrPrivate},
		"mixed6.test":   {addrFlip, netip.MustParseAddr("fd00:99::10")},
		"loopback.test": {netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()},
		"mapped.test":   {netip.AddrFrom16(addrPrivate.As16())},
		"internal.test": {netip.MustParseAddr("10.77.0.1")},
		"meta6.test":    {addrMetadata6},
		"nat64.test":    {addrNAT64},
		"labhost.test":  {netip.MustParseAddr("192.0.2.2")},
		"zero.test":     {netip.IPv4Unspecified()},
		// Names that look like allowed.test and wild.test.
		"evilallowed.test":      {addrVictim},
		"allowed.test.evil.com": {addrVictim},
		"evilwild.test":         {addrVictim},
		"wild.test.evil.com":    {addrVictim},
		"xn--llowed-2nf.test":   {addrVictim}, // with a Cyrillic a
	}
	for _, s := range slices.Concat(webSites, gitSites, sshSites) {
		names[s.name] = []netip.Addr{s.addr}
	}
	return names
}

// addresses are all that the servers listen on, each once, in order.
func addresses() []netip.Addr {
	all := append([]netip.Addr{addrDNS, addrMessages}, victims...)
	for _, s := range slices.Concat(webSites, gitSites, sshSites) {
		all = append(all, s.addr)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// isWeb tells whether a web server has the address's port already.
func isWeb(at netip.AddrPort) bool {
	return slices.ContainsFunc(webSites, func(s site) bool {
		return s.addr == at.Addr() && (at.Port() == 80 || s.tls && at.Port() == 443)
	})
}
