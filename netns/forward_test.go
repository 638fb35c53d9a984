package netns

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dropForward makes the host's firewall drop forwarded packets: by a chain's policy,
// as docker and ufw do, or by its last rule, as firewalld does.
func dropForward(t *testing.T, policy nftables.ChainPolicy, last ...expr.Any) {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"})
	chain := conn.AddChain(&nftables.Chain{
		Name: "FORWARD", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &policy,
	})
	if len(last) > 0 {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: last})
	}
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.DelTable(table)
		if err := conn.Flush(); err != nil {
			t.Error(err)
		}
	})
}

// TestForwardPolicyDrop checks that a proxy reaches the world although the host drops
// forwarded packets by default, and that the host's chain is restored afterwards.
func TestForwardPolicyDrop(t *testing.T) {
	m := newManager(t)
	listen(t, worldNS, publicAddr+":80")
	listen(t, worldNS, private+":80")
	dropForward(t, nftables.ChainPolicyDrop)
	info, err := m.Check(ctx(t))
	if err != nil || len(info.Warnings) != 0 || !slices.ContainsFunc(info.Changes, func(f Finding) bool {
		return f.Subject == SubjectFirewall && strings.Contains(f.Detail, "ip filter FORWARD")
	}) {
		t.Errorf("Check: %+v, %v", info, err)
	}
	before := hostState(t)
	p := newPair(t, m, "one")
	proxy := ProxyPath(p.dir)
	if !reaches(proxy, publicAddr+":80", controlTime) {
		t.Error("the proxy does not reach the world")
	}
	if reaches(proxy, private+":80", probeTime) {
		t.Error("the proxy reaches a private address")
	}
	// Control: without bottle's rules the chain drops, and Verify reports it.
	inNS(t, "", removeForwardRules)
	if reaches(proxy, publicAddr+":80", probeTime) {
		t.Error("control failed: the host's chain does not drop")
	}
	if err := p.Verify(ctx(t)); err == nil || !strings.Contains(err.Error(), "FORWARD drops forwarded packets") {
		t.Errorf("Verify: %v", err)
	}
	if err := m.Refresh(ctx(t)); err != nil {
		t.Fatal(err)
	}
	if !reaches(proxy, publicAddr+":80", controlTime) {
		t.Error("Refresh did not restore the rules")
	}
	if err := m.Remove(ctx(t), p.dir); err != nil {
		t.Fatal(err)
	}
	removeBottleDir(t, p.dir)
	checkUnchanged(t, before)
}

// TestForwardRefused checks the warning about a chain that bottle cannot change.
func TestForwardRefused(t *testing.T) {
	m := newManager(t)
	dropForward(t, nftables.ChainPolicyAccept, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})
	info, err := m.Check(ctx(t))
	if err != nil || len(info.Warnings) != 1 || info.Warnings[0].Subject != SubjectFirewall ||
		!strings.Contains(info.Warnings[0].Detail, "ends by rejecting all forwarded packets") || !strings.Contains(info.Warnings[0].Fix, "--add-interface=bottle0") {
		t.Errorf("Check: %+v, %v", info, err)
	}
}

// TestHostBlockedByProxy checks that the proxy's own rules suffice to block the host's
// public addresses, as when the host's firewall was flushed.
func TestHostBlockedByProxy(t *testing.T) {
	m := newManager(t)
	const hostPublic = "203.0.114.1" // makeWorld's uplink
	host := listen(t, "", hostPublic+":8080")
	listen(t, worldNS, lanAddr+":8080")
	p := newPair(t, m, "blocked")
	proxy := ProxyPath(p.dir)
	inNS(t, "", removeTable)
	for _, addr := range []string{hostPublic + ":8080", lanAddr + ":8080"} {
		if reaches(proxy, addr, probeTime) {
			t.Errorf("%s is reached without the host's table", addr)
		}
	}
	if datagramReaches(t, proxy, host, probeTime) {
		t.Error("a datagram reaches the host without the host's table")
	}
	// Nor does a policy that allows the networks that contain them.
	allow := []netip.Prefix{netip.MustParsePrefix("203.0.114.0/24"), netip.MustParsePrefix("10.0.0.0/8")}
	if err := m.SetDestinations(t.Context(), p.dir, Destinations{Private: allow}); err != nil {
		t.Fatal(err)
	}
	inNS(t, "", removeTable)
	bridge := listen(t, "", "10.210.0.1:8080")
	for _, addr := range []string{hostPublic + ":8080", "10.210.0.1:8080"} {
		if reaches(proxy, addr, probeTime) {
			t.Errorf("%s is reached without the host's table where its network is allowed", addr)
		}
	}
	if datagramReaches(t, proxy, bridge, probeTime) {
		t.Error("a datagram reaches the bridge's address without the host's table")
	}
	// Control: without the proxy's own rules.
	inNS(t, proxy, removeTable)
	if !reaches(proxy, "10.210.0.1:8080", controlTime) {
		t.Error("control failed: the bridge's address is not reached without any rules")
	}
	if !reaches(proxy, hostPublic+":8080", controlTime) {
		t.Error("control failed: the host is not reached without any rules")
	}
	if !datagramReaches(t, proxy, host, controlTime) {
		t.Error("control failed: no datagram reaches the host without any rules")
	}
}

// TestHostIsNotRouter checks that a host that did not forward keeps its links separated
// while bottles run, although ip_forward is on. A link that is added later can connect
// to the others, but they reach it only where the host redirects to it.
func TestHostIsNotRouter(t *testing.T) {
	const neighbour, later = "/run/neighbour.netns", "/run/later.netns"
	neighbourLink(t, neighbour, "lan0", "10.50.0")
	v := listen(t, worldNS, publicAddr+":9000")
	m := newManager(t)
	before := hostState(t)
	if reaches(neighbour, v.addr, probeTime) {
		t.Fatal("the host forwards already")
	}
	p := newPair(t, m, "router")
	if !reaches(ProxyPath(p.dir), v.addr, controlTime) {
		t.Error("the proxy does not reach the world")
	}
	if reaches(neighbour, v.addr, probeTime) || datagramReaches(t, neighbour, v, probeTime) {
		t.Error("a neighbour reaches the world through the host")
	}
	t.Run("a later link", func(t *testing.T) {
		neighbourLink(t, later, "lan1", "10.51.0")
		inside := listen(t, later, "10.51.0.2:9000")
		if !reaches(later, v.addr, controlTime) {
			t.Error("it does not reach the world")
		}
		if reaches(neighbour, inside.addr, probeTime) || datagramReaches(t, neighbour, inside, probeTime) {
			t.Error("a neighbour reaches it")
		}
		remove := redirect(t, "10.50.0.1", 9100, inside.addr)
		if !reaches(neighbour, "10.50.0.1:9100", controlTime) {
			t.Error("a neighbour does not reach what the host redirects to it")
		}
		remove()
		// Control: without bottle's rules the kernel forwards.
		inNS(t, "", removeTable)
		if !reaches(neighbour, inside.addr, controlTime) {
			t.Error("control failed: the neighbour does not reach the later link without the rules")
		}
		if err := m.Refresh(ctx(t)); err != nil {
			t.Fatal(err)
		}
	})
	// Control: without bottle's rules the kernel forwards.
	inNS(t, "", removeTable)
	if !reaches(neighbour, v.addr, controlTime) {
		t.Error("control failed: the neighbour does not reach the world without the rules")
	}
	if err := m.Refresh(ctx(t)); err != nil {
		t.Fatal(err)
	}
	if reaches(neighbour, v.addr, probeTime) {
		t.Error("a neighbour reaches the world after the rules were written again")
	}
	if err := m.Remove(ctx(t), p.dir); err != nil {
		t.Fatal(err)
	}
	removeBottleDir(t, p.dir)
	checkUnchanged(t, before)
}

// redirect makes the host redirect connections to one of its addresses, as docker does
// for a published port.
func redirect(t *testing.T, host string, number uint16, to string) (remove func()) {
	t.Helper()
	dst := netip.MustParseAddrPort(to)
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "published"})
	chain := conn.AddChain(&nftables.Chain{
		Name: "prerouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: slices.Concat(
		dest(netip.MustParseAddr(host)), port(unix.IPPROTO_TCP, offsetDport, number),
		[]expr.Any{
			&expr.Immediate{Register: reg1, Data: dst.Addr().AsSlice()},
			&expr.Immediate{Register: reg2, Data: binaryutil.BigEndian.PutUint16(dst.Port())},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg1, RegProtoMin: reg2},
		})})
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	return func() {
		conn.DelTable(table)
		if err := conn.Flush(); err != nil {
			t.Error(err)
		}
	}
}

// TestRouterUnaffected checks that a host that forwards for its neighbours still does
// while bottles run.
func TestRouterUnaffected(t *testing.T) {
	inNS(t, "", func() error { return writeSysctl("ipv4/ip_forward", "1") })
	t.Cleanup(func() { inNS(t, "", func() error { return writeSysctl("ipv4/ip_forward", "0") }) })
	const neighbour = "/run/neighbour.netns"
	neighbourLink(t, neighbour, "lan0", "10.50.0")
	v := listen(t, worldNS, publicAddr+":9000")
	newPair(t, newManager(t), "router")
	if !reaches(neighbour, v.addr, controlTime) {
		t.Error("a neighbour does not reach the world while a bottle runs")
	}
}

// neighbourLink connects a new namespace to the host by a link, with a default route
// through the host.
func neighbourLink(t *testing.T, ns, name, net string) {
	t.Helper()
	if err := pin(ns, setUpNS); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(deleteLink(name), unpin(ns)); err != nil {
			t.Error(err)
		}
	})
	f, err := os.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	inNS(t, "", func() error {
		err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "out0", PeerNamespace: netlink.NsFd(int(f.Fd()))})
		return errors.Join(err, configure(name, net+".1/24"))
	})
	inNS(t, ns, func() error {
		return errors.Join(configure("out0", net+".2/24"), addRoute("0.0.0.0/0", net+".1"))
	})
}

// TestBridgeUnaffected checks that a bridge of the host still passes packets between
// its ports, for example between virtual machines. With br_netfilter loaded the kernel
// applies the same rules to them.
func TestBridgeUnaffected(t *testing.T) {
	inNS(t, "", func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "lanbr0"
		return errors.Join(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}), configure("lanbr0", "10.52.0.1/24"))
	})
	t.Cleanup(func() {
		if err := deleteLink("lanbr0"); err != nil {
			t.Error(err)
		}
	})
	const one, two = "/run/one.netns", "/run/two.netns"
	for i, ns := range []string{one, two} {
		name := fmt.Sprintf("lan%d", i)
		neighbourLink(t, ns, name, fmt.Sprintf("10.6%d.0", i))
		inNS(t, "", func() error {
			br, err := netlink.LinkByName("lanbr0")
			if err != nil {
				return err
			}
			port, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			return netlink.LinkSetMaster(port, br)
		})
		inNS(t, ns, func() error { return configure("out0", fmt.Sprintf("10.52.0.%d/24", i+2)) })
	}
	v := listen(t, two, "10.52.0.3:9000")
	if !reaches(one, v.addr, controlTime) {
		t.Fatal("control failed: the bridge does not work")
	}
	newPair(t, newManager(t), "bridged")
	if !reaches(one, v.addr, controlTime) {
		t.Error("the bridge passes nothing while a bottle runs")
	}
}
