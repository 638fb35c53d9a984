package netns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/segment"
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
	if err := m.SetDestinations(ctx(t), dir, Destinations{Ports: Ports(443, 22, 443)}); err != nil {
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
	change(Destinations{Ports: Ports(443), Private: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16"), netip.MustParsePrefix("fd00::/8")}})
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

// TestPortRanges checks the ends of ranges, which may overlap and adjoin.
func TestPortRanges(t *testing.T) {
	m := newManager(t)
	ports := map[int]bool{
		2999: false, 3000: true, 3005: true, 3010: true, 3011: true, 3012: false,
		65533: false, 65534: true, 65535: true, 443: true, 442: false, 1: true, 2: false,
	}
	for port := range ports {
		listen(t, worldNS, fmt.Sprintf("%s:%d", publicAddr, port))
	}
	p := newPair(t, m, "ranges")
	check := func(open func(port int) bool) {
		t.Helper()
		for port := range ports {
			limit := probeTime
			if open(port) {
				limit = controlTime
			}
			if got := reaches(ProxyPath(p.dir), fmt.Sprintf("%s:%d", publicAddr, port), limit); got != open(port) {
				t.Errorf("port %d reached: %v", port, got)
			}
		}
	}
	check(func(int) bool { return true }) // control
	set := func(ranges ...PortRange) {
		t.Helper()
		if err := m.SetDestinations(ctx(t), p.dir, Destinations{Ports: ranges}); err != nil {
			t.Fatal(err)
		}
	}
	set(PortRange{65534, 65535}, PortRange{3005, 3010}, PortRange{3000, 3006}, PortRange{3011, 3011}, PortRange{443, 443}, PortRange{0, 1})
	check(func(port int) bool { return ports[port] })
	if err := p.Verify(ctx(t)); err != nil {
		t.Error(err)
	}
	set(PortRange{0, 65535})
	check(func(int) bool { return true })
	if err := m.SetDestinations(ctx(t), p.dir, Destinations{Ports: []PortRange{{2, 1}}}); err == nil {
		t.Error("SetDestinations accepted a range that ends before it begins")
	}
}

func TestMergePorts(t *testing.T) {
	for _, tt := range []struct{ in, want []PortRange }{
		{nil, nil},
		{Ports(443, 80, 443), Ports(80, 443)},
		{Ports(80, 81), []PortRange{{80, 81}}},
		{[]PortRange{{1, 10}, {3, 5}, {11, 20}, {30, 30}}, []PortRange{{1, 20}, {30, 30}}},
		{[]PortRange{{65535, 65535}, {0, 65535}}, []PortRange{{0, 65535}}},
	} {
		if got, err := mergePorts(tt.in); err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("mergePorts(%v) = %v, %v, want %v", tt.in, got, err, tt.want)
		}
	}
}

// TestManyPrivateNetworks checks that a long list of networks fits into the rules.
func TestManyPrivateNetworks(t *testing.T) {
	m := newManager(t)
	p := newPair(t, m, "many")
	listen(t, worldNS, private+":80")
	var list []netip.Prefix
	for i := range 1000 {
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(100 + i/128), byte(2 * (i % 128)), 0}), 24))
	}
	for _, tt := range []struct {
		private []netip.Prefix
		open    bool
	}{{list, false}, {append(list, netip.MustParsePrefix(private+"/32")), true}} {
		if err := m.SetDestinations(ctx(t), p.dir, Destinations{Private: tt.private}); err != nil {
			t.Fatal(err)
		}
		if err := p.Verify(ctx(t)); err != nil {
			t.Error(err)
		}
		if got := reaches(ProxyPath(p.dir), private+":80", controlTime); got != tt.open {
			t.Errorf("%d networks: reached: %v, want %v", len(tt.private), got, tt.open)
		}
	}
}

// TestLoopback checks that the proxy, which is not root, reaches nothing in its own
// namespace, by whichever address: a name that resolves to one would lead an agent to
// the proxy's own services. Bottle's health check, by root, does.
func TestLoopback(t *testing.T) {
	m := newManager(t)
	p := newPair(t, m, "loopback")
	proxy := ProxyPath(p.dir)
	leases, err := m.leasesOf(p.confs.Egress.Name, p.id)
	if err != nil || len(leases) != 1 {
		t.Fatal(leases, err)
	}
	health := fmt.Sprintf("%s:%d", segment.Proxy.Addr(), segment.ProxyPort)
	targets := []*victim{
		listen(t, proxy, health),
		listen(t, proxy, "127.0.0.1:9091"),
		listen(t, proxy, segment.Proxy.Addr().String()+":9091"),
		listen(t, proxy, leases[0].addr.String()+":9091"),
	}
	for _, v := range targets {
		if proxyReaches(t, proxy, v.addr, probeTime) {
			t.Errorf("the proxy reaches %s in its own namespace", v.addr)
		}
		if datagramReachesAs(t, proxyUser, proxy, v, probeTime) {
			t.Errorf("a datagram of the proxy reaches %s in its own namespace", v.addr)
		}
	}
	// 0.0.0.0 and every other address of 127.0.0.0/8 are local, too.
	for _, addr := range []string{"0.0.0.0:9091", "127.1.2.3:9091"} {
		if proxyReaches(t, proxy, addr, probeTime) {
			t.Errorf("the proxy reaches %s in its own namespace", addr)
		}
	}
	if !reaches(proxy, health, controlTime) {
		t.Error("the health check does not reach the proxy")
	}
	listen(t, worldNS, publicAddr+":80")
	if !proxyReaches(t, proxy, publicAddr+":80", controlTime) {
		t.Error("the proxy does not reach the world")
	}
	// Control: without the rules all of them answer.
	inNS(t, proxy, removeTable)
	for _, v := range targets {
		if !proxyReaches(t, proxy, v.addr, controlTime) {
			t.Errorf("control failed: %s is not reached without rules", v.addr)
		}
		if !datagramReachesAs(t, proxyUser, proxy, v, controlTime) {
			t.Errorf("control failed: no datagram reaches %s without rules", v.addr)
		}
	}
}

// TestFront: the process in front of pipelock reaches pipelock's port on loopback and
// nothing else, and pipelock does not reach it. The agent reaches neither pipelock's port
// nor loopback. In the controls there are no rules.
func TestFront(t *testing.T) {
	m := newManager(t)
	p := newPair(t, m, "front")
	if err := m.SetDestinations(t.Context(), p.dir, Destinations{Front: true}); err != nil {
		t.Fatal(err)
	}
	if err := p.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	proxy, agent := ProxyPath(p.dir), AgentPath(p.dir)
	behind, front := segment.BehindAddrPort().String(), segment.ProxyAddrPort().String()
	listen(t, proxy, behind)
	listen(t, proxy, front)
	listen(t, proxy, "127.0.0.1:9091")
	onSegment := fmt.Sprintf("%s:%d", segment.Proxy.Addr(), segment.BehindPort)
	listen(t, proxy, onSegment)
	listen(t, worldNS, publicAddr+":443")
	as := func(uid int, ns, addr string, limit time.Duration) bool {
		return greeted(limit, func(ctx context.Context) (net.Conn, error) { return dialAs(ctx, t, uid, ns, "tcp", addr) })
	}
	type attempt struct {
		who  string
		uid  int
		ns   string
		addr string
		open bool
	}
	attempts := []attempt{
		{"the front", segment.FrontUID, proxy, behind, true},
		{"the front", segment.FrontUID, proxy, "127.0.0.1:9091", false},
		{"the front", segment.FrontUID, proxy, publicAddr + ":443", false},
		{"the proxy", proxyUser, proxy, behind, false},
		{"the proxy", proxyUser, proxy, front, false},
		{"the proxy", proxyUser, proxy, publicAddr + ":443", true},
		{"the agent", 0, agent, front, true},
		{"the agent", 0, agent, onSegment, false},
	}
	for _, a := range attempts {
		limit := probeTime
		if a.open {
			limit = controlTime
		}
		if got := as(a.uid, a.ns, a.addr, limit); got != a.open {
			t.Errorf("%s reaches %s: %v, want %v", a.who, a.addr, got, a.open)
		}
	}
	inNS(t, proxy, removeTable)
	for _, a := range attempts {
		if !as(a.uid, a.ns, a.addr, controlTime) {
			t.Errorf("control failed: without rules %s does not reach %s", a.who, a.addr)
		}
	}
}
