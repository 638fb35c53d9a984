package netns

import (
	"net/netip"
	"slices"
)

// addrRange is an inclusive range of IPv4 addresses.
type addrRange struct{ first, last netip.Addr }

// special are the IPv4 networks that are not public (IANA IPv4 Special-Purpose
// Address Registry, RFC 6890). They are blocked unless a bottle's policy names
// them.
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("192.88.99.0/24"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("224.0.0.0/3"), // multicast, reserved, broadcast
}

// rangeOf converts a prefix to a range.
func rangeOf(p netip.Prefix) addrRange {
	last := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		last[i/8] |= 0x80 >> (i % 8)
	}
	return addrRange{p.Masked().Addr(), netip.AddrFrom4(last)}
}

// merged converts prefixes to ranges that neither overlap nor adjoin: the kernel
// refuses a set with overlapping ranges.
func merged(prefixes []netip.Prefix) []addrRange {
	ranges := make([]addrRange, len(prefixes))
	for i, p := range prefixes {
		ranges[i] = rangeOf(p)
	}
	slices.SortFunc(ranges, func(a, b addrRange) int { return a.first.Compare(b.first) })
	var out []addrRange
	for _, r := range ranges {
		if n := len(out); n > 0 && adjoins(out[n-1], r) {
			if out[n-1].last.Less(r.last) {
				out[n-1].last = r.last
			}
			continue
		}
		out = append(out, r)
	}
	return out
}

// adjoins reports whether b, which does not begin before a, begins in a or
// immediately after it.
func adjoins(a, b addrRange) bool {
	next := a.last.Next() // invalid after 255.255.255.255
	return !next.IsValid() || b.first.Compare(next) <= 0
}

// Special returns the IPv4 networks that are not public.
func Special() []netip.Prefix { return slices.Clone(special) }
