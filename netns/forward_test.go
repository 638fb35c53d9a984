package netns

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
)

// dropForward makes the host's firewall drop what is forwarded: by a chain's
// policy, as docker and ufw do, or by its last rule, as firewalld does.
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

// TestForwardPolicyDrop has a proxy reach the world where the host drops what is
// forwarded, and the host's chain as it was afterwards.
func TestForwardPolicyDrop(t *testing.T) {
	m := newManager(t)
	listen(t, worldNS, publicAddr+":80")
	listen(t, worldNS, private+":80")
	dropForward(t, nftables.ChainPolicyDrop)
	info, err := m.Check(ctx(t))
	if err != nil || len(info.Warnings) != 0 || !slices.ContainsFunc(info.Changes, func(s string) bool { return strings.Contains(s, "ip filter FORWARD") }) {
		t.Errorf("Check: %+v, %v", info, err)
	}
	before := state(t)
	p := up(t, m, "one")
	proxy := ProxyPath(p.dir)
	if !reaches(proxy, publicAddr+":80", controlTime) {
		t.Error("the proxy does not reach the world")
	}
	if reaches(proxy, private+":80", probeTime) {
		t.Error("the proxy reaches a private address")
	}
	// The control: without bottle's rules in it the chain drops, and is seen to.
	in(t, "", closeForward)
	if reaches(proxy, publicAddr+":80", probeTime) {
		t.Error("the host's chain does not drop, so that the test shows nothing")
	}
	if err := p.Verify(ctx(t)); err == nil || !strings.Contains(err.Error(), "FORWARD drops forwarded packets") {
		t.Errorf("Verify: %v", err)
	}
	if err := m.Refresh(ctx(t)); err != nil {
		t.Fatal(err)
	}
	if !reaches(proxy, publicAddr+":80", controlTime) {
		t.Error("Refresh did not put the rules back")
	}
	if err := m.Remove(ctx(t), p.dir); err != nil {
		t.Fatal(err)
	}
	removeFolder(t, p.dir)
	unchanged(t, before)
}

// TestForwardRefused is told where bottle cannot help.
func TestForwardRefused(t *testing.T) {
	m := newManager(t)
	dropForward(t, nftables.ChainPolicyAccept, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})
	info, err := m.Check(ctx(t))
	if err != nil || len(info.Warnings) != 1 || !strings.Contains(info.Warnings[0], "ends by refusing all that is forwarded") {
		t.Errorf("Check: %+v, %v", info, err)
	}
}

// TestHostBarredByProxy has the proxy's own rules alone keep it from the host's
// public addresses, as when the host's firewall was flushed.
func TestHostBarredByProxy(t *testing.T) {
	m := newManager(t)
	const hostPublic = "203.0.114.1" // makeWorld's uplink
	host := listen(t, "", hostPublic+":8080")
	listen(t, worldNS, lanAddr+":8080")
	p := up(t, m, "barred")
	proxy := ProxyPath(p.dir)
	in(t, "", removeTable)
	for _, addr := range []string{hostPublic + ":8080", lanAddr + ":8080"} {
		if reaches(proxy, addr, probeTime) {
			t.Errorf("%s is reached without the host's table", addr)
		}
	}
	if datagramReaches(t, proxy, host, probeTime) {
		t.Error("a datagram reaches the host without the host's table")
	}
	// The control: without the proxy's own.
	in(t, proxy, removeTable)
	if !reaches(proxy, hostPublic+":8080", controlTime) {
		t.Error("the host is not reached without any rules, so that the test shows nothing")
	}
	if !datagramReaches(t, proxy, host, controlTime) {
		t.Error("no datagram reaches the host without any rules, so that the test shows nothing")
	}
}

// TestHostIsNoRouter: a host that forwarded nothing goes on keeping its links
// apart while bottles run, although the kernel's switch for that is on. Links
// that come later are left to whoever makes them.
func TestHostIsNoRouter(t *testing.T) {
	const neighbour, later = "/run/neighbour.netns", "/run/later.netns"
	neighbourLink(t, neighbour, "lan0", "10.50.0")
	v := listen(t, worldNS, publicAddr+":9000")
	m := newManager(t)
	before := state(t)
	if reaches(neighbour, v.addr, probeTime) {
		t.Fatal("the host is a router already")
	}
	p := up(t, m, "router")
	if !reaches(ProxyPath(p.dir), v.addr, controlTime) {
		t.Error("the proxy does not reach the world")
	}
	if reaches(neighbour, v.addr, probeTime) || datagramReaches(t, neighbour, v, probeTime) {
		t.Error("a neighbour of the host's reaches the world by it")
	}
	t.Run("a later link", func(t *testing.T) {
		neighbourLink(t, later, "lan1", "10.51.0")
		if !reaches(later, v.addr, controlTime) {
			t.Error("it is kept from where it may want to go")
		}
	})
	// The control: without bottle's rules the kernel forwards.
	in(t, "", removeTable)
	if !reaches(neighbour, v.addr, controlTime) {
		t.Error("the neighbour does not reach the world without the rules either, so that this shows nothing")
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
	removeFolder(t, p.dir)
	unchanged(t, before)
}

// TestRouterStaysOne: a host that forwards does so for its neighbours while
// bottles run.
func TestRouterStaysOne(t *testing.T) {
	in(t, "", func() error { return writeSysctl("ipv4/ip_forward", "1") })
	t.Cleanup(func() { in(t, "", func() error { return writeSysctl("ipv4/ip_forward", "0") }) })
	const neighbour = "/run/neighbour.netns"
	neighbourLink(t, neighbour, "lan0", "10.50.0")
	v := listen(t, worldNS, publicAddr+":9000")
	up(t, newManager(t), "router")
	if !reaches(neighbour, v.addr, controlTime) {
		t.Error("a neighbour does not reach the world any more")
	}
}

// neighbourLink joins a new namespace to the host by a link of its own, and has
// the host be its way out.
func neighbourLink(t *testing.T, ns, name, net string) {
	t.Helper()
	if err := pin(ns, prepareNS); err != nil {
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
	in(t, "", func() error {
		err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "out0", PeerNamespace: netlink.NsFd(int(f.Fd()))})
		return errors.Join(err, configure(name, net+".1/24"))
	})
	in(t, ns, func() error {
		return errors.Join(configure("out0", net+".2/24"), addRoute("0.0.0.0/0", net+".1"))
	})
}

// TestBridgeGoesOn: what a bridge of the host's passes from port to port, between
// its virtual machines for example, is no forwarding, although the kernel shows it to
// the same rules where br_netfilter is there.
func TestBridgeGoesOn(t *testing.T) {
	in(t, "", func() error {
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
		in(t, "", func() error {
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
		in(t, ns, func() error { return configure("out0", fmt.Sprintf("10.52.0.%d/24", i+2)) })
	}
	v := listen(t, two, "10.52.0.3:9000")
	if !reaches(one, v.addr, controlTime) {
		t.Fatal("the bridge does not work, so that this shows nothing")
	}
	up(t, newManager(t), "bridged")
	if !reaches(one, v.addr, controlTime) {
		t.Error("the bridge passes nothing any more")
	}
}
