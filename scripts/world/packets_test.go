package main

import (
	"net/netip"
	"testing"
)

// TestICMPType checks that only errors about the world's own packets are
// recognized as such.
func TestICMPType(t *testing.T) {
	here := netip.MustParseAddr("198.51.101.10")
	quote := func(src netip.Addr) []byte {
		header := []byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0}
		header = append(header, src.AsSlice()...)
		return append(header, 192, 0, 2, 2, 0x01, 0xbb, 0x9c, 0x40, 0, 0, 0, 0)
	}
	for want, payload := range map[string][]byte{
		icmpUnreachable: append([]byte{3, 1, 0, 0, 0, 0, 0, 0}, quote(here)...),
		"3":             append([]byte{3, 1, 0, 0, 0, 0, 0, 0}, quote(netip.MustParseAddr("10.77.0.2"))...),
		"8":             {8, 0, 0, 0, 0, 1, 0, 1, 'x'},
		"none":          {},
	} {
		if got := icmpType(here, payload); got != want {
			t.Errorf("%x: %q, want %q", payload, got, want)
		}
	}
	if got := icmpType(here, []byte{3, 1, 0, 0, 0, 0, 0, 0, 0x45}); got != "3" {
		t.Errorf("truncated quotation: %q", got)
	}
}
