package netns

import (
	"net/netip"
	"testing"
)

// A proxy reaches exactly the ports and private networks that were set, whether
// before or after its network was attached. Without any it reaches every port of
// public addresses, which is the control.
func TestDestinations(t *testing.T) {
	m := newManager(t)
	const (
		web, ssh, odd = publicAddr + ":443", publicAddr + ":22", publicAddr + ":4444"
		inside        = private + ":443"
		insideOdd     = private + ":4444"
		meta          = metadata + ":443"
	)
	for _, addr := range []string{web, ssh, odd, inside, insideOdd, meta} {
		listen(t, worldNS, addr)
	}
	listen(t, "", hostAddr+":443")
	dir := makeBottleDir(t, "first")
	t.Cleanup(func() {
		if err := m.Remove(ctx(t), dir); err != nil {
			t.Error(err)
		}
	})
	if err := m.SetDestinations(ctx(t), dir, Destinations{Ports: []uint16{443, 22, 443}}); err != nil {
		t.Fatal(err)
	}
	if _, err := attach(ctx(t), m, dir, nil); err != nil {
		t.Fatal(err)
	}
	other := newPair(t, m, "second")
	check := func(when, ns string, want map[string]bool) {
		t.Helper()
		for addr, open := range want {
			limit := probeTime
			if open {
				limit = controlTime
			}
			if got := reaches(ns, addr, limit); got != open {
				t.Errorf("%s: %s reached: %v, want %v", when, addr, got, open)
			}
		}
	}
	mine := ProxyPath(dir)
	check("ports", mine, map[string]bool{web: true, ssh: true, odd: false, inside: false, meta: false})
	check("the other bottle", ProxyPath(other.dir), map[string]bool{web: true, ssh: true, odd: true, inside: false})

	change := func(d Destinations) {
		t.Helper()
		if err := m.SetDestinations(ctx(t), dir, d); err != nil {
			t.Fatal(err)
		}
	}
	change(Destinations{Ports: []uint16{443}, Private: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16"), netip.MustParsePrefix("fd00::/8")}})
	check("a private network", mine, map[string]bool{web: true, ssh: false, inside: true, insideOdd: false, meta: false})
	check("the other bottle", ProxyPath(other.dir), map[string]bool{odd: true, inside: false})

	// The widest possible policy still excludes the host and other bottles.
	var all []netip.Prefix
	for _, p := range []string{"10.0.0.0/8", "192.0.0.0/8"} {
		all = append(all, netip.MustParsePrefix(p))
	}
	change(Destinations{Private: all})
	listen(t, ProxyPath(other.dir), "0.0.0.0:443")
	neighbour, err := m.leasesOf(other.confs.Egress.Name, other.id)
	if err != nil || len(neighbour) != 1 {
		t.Fatal(neighbour, err)
	}
	check("all private networks", mine, map[string]bool{
		inside: true, insideOdd: true, hostAddr + ":443": false, gateway(other.confs.Egress.Subnet).String() + ":443": false,
		neighbour[0].addr.String() + ":443": false,
	})
	// Controls: both addresses answer where no rule blocks them.
	check("control", worldNS, map[string]bool{hostAddr + ":443": true})
	check("control", ProxyPath(other.dir), map[string]bool{neighbour[0].addr.String() + ":443": true})
	change(Destinations{})
	check("nothing named", mine, map[string]bool{web: true, odd: true, inside: false})
}
