package main

import (
	"net/netip"
	"slices"
)

// Public addresses are in 198.51.101.0/24. TEST-NET-2 (198.51.100.0/24) would not
// do, because a proxy refuses the special-purpose ranges of RFC 6890.
var (
	addrDNS      = netip.MustParseAddr("198.51.101.53")
	addrMessages = netip.MustParseAddr("198.51.101.14")
	addrAPIs     = netip.MustParseAddr("198.51.101.17")
	addrPackages = netip.MustParseAddr("198.51.101.18")
	addrPrivate  = netip.MustParseAddr("10.99.0.10")
	addrMetadata = netip.MustParseAddr("169.254.169.254")
	addrFlip     = netip.MustParseAddr("198.51.101.10")
	addrVictim   = netip.MustParseAddr("198.51.101.66")
	// The IPv6 address of a metadata service, and addrPrivate as mapped by NAT64
	// (RFC 6052).
	addrMetadata6 = netip.MustParseAddr("fd00:ec2::254")
	addrNAT64     = netip.MustParseAddr("64:ff9b::a63:a")
)

// site is a web server: the name in its responses and its address. It listens on
// port 80 and, with tls, on 443.
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

// apiNames are the hosts of agents' APIs other than the Messages API.
var apiNames = []string{
	"api.openai.com", "chatgpt.com", "auth.openai.com", "generativelanguage.googleapis.com",
	"dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com", "api.github.com", "api.githubcopilot.com",
	"models.opencode.ai", "opencode.ai", "ampcode.com", "api.cline.bot",
}

// gitSites serve git over HTTPS.
var gitSites = []site{
	{"git.allowed.test", netip.MustParseAddr("198.51.101.12"), true},
	{"git.refused.test", netip.MustParseAddr("198.51.101.13"), true},
}

// victims are addresses that no traffic may reach: public, private (RFC 1918),
// shared (RFC 6598) and link-local ones, and a well-known public resolver.
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

// sshSites serve git over ssh on sshPorts, each with its own host key.
var sshSites = []site{
	{name: "ssh.allowed.test", addr: netip.MustParseAddr("198.51.101.22")},
	{name: "ssh.other.test", addr: netip.MustParseAddr("198.51.101.23")},
}

var sshPorts = []uint16{22, 2222}

var (
	victimTCPPorts = []uint16{22, 25, 53, 80, 443, 2375, 4444, 8080, 9999}
	victimUDPPorts = []uint16{53, 123, 443, 9999}
)

// zone holds the names that the DNS server knows, in addition to flipName.
var zone = newZone()

// flipName resolves to a web server and to a private address alternately (DNS
// rebinding). It detects a proxy that checks one address and connects to another.
const flipName = "flip.test"

func newZone() map[string][]netip.Addr {
	names := map[string][]netip.Addr{
		"api.anthropic.com":   {addrMessages},
		"platform.claude.com": {addrMessages},
		"packages.test":       {addrPackages}, // a server that a test starts itself
		"victim.test":         {addrVictim, netip.MustParseAddr("2001:db8:77::66")},
		// Names with addresses of several kinds, or with special addresses.
		"mixed.test":    {addrFlip, addrPrivate},
		"mixed6.test":   {addrFlip, netip.MustParseAddr("fd00:99::10")},
		"loopback.test": {netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()},
		"mapped.test":   {netip.AddrFrom16(addrPrivate.As16())},
		"internal.test": {netip.MustParseAddr("10.77.0.1")},
		"meta6.test":    {addrMetadata6},
		"nat64.test":    {addrNAT64},
		"labhost.test":  {netip.MustParseAddr("192.0.2.2")},
		"zero.test":     {netip.IPv4Unspecified()},
		// Names that resemble allowed.test and wild.test.
		"evilallowed.test":      {addrVictim},
		"allowed.test.evil.com": {addrVictim},
		"evilwild.test":         {addrVictim},
		"wild.test.evil.com":    {addrVictim},
		"xn--llowed-2nf.test":   {addrVictim}, // allowed.test with a Cyrillic a
	}
	for _, name := range apiNames {
		names[name] = []netip.Addr{addrAPIs}
	}
	for _, s := range slices.Concat(webSites, gitSites, sshSites) {
		names[s.name] = []netip.Addr{s.addr}
	}
	return names
}

// addresses returns the addresses of all servers, sorted and without duplicates.
func addresses() []netip.Addr {
	all := append([]netip.Addr{addrDNS, addrMessages, addrAPIs, addrPackages}, victims...)
	for _, s := range slices.Concat(webSites, gitSites, sshSites) {
		all = append(all, s.addr)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// isWeb reports whether a web server uses the address and port.
func isWeb(addr netip.AddrPort) bool {
	return slices.ContainsFunc(webSites, func(s site) bool {
		return s.addr == addr.Addr() && (addr.Port() == 80 || s.tls && addr.Port() == 443)
	})
}
