package netns

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/internal/segment"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	cniconf "github.com/bot-bottle/bottle/cni-conf"
)

// ErrMismatch is wrapped when the network differs from its specification.
var ErrMismatch = errors.New("network verification failed")

// Verify reads back both namespaces and the host's end of the proxy's link:
// settings, links, addresses, routes, packet filters. The error wraps ErrMismatch
// and lists every difference.
func (p *Pair) Verify(ctx context.Context) error {
	return errors.Join(p.VerifyAgent(ctx), p.VerifyProxy(ctx))
}

// VerifyAgent is the part of Verify that covers the agent's namespace, after
// AttachInternal. It must precede the creation of the sandbox, when gVisor removes
// the addresses from that namespace.
func (p *Pair) VerifyAgent(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	diff, err := diffNS(AgentPath(p.dir), wantAgent())
	if err != nil {
		return fmt.Errorf("verify the agent's namespace: %w", err)
	}
	return mismatch("agent's namespace: ", diff)
}

// VerifyProxy is the part of Verify that covers the proxy's namespace and the host,
// after both attachments.
func (p *Pair) VerifyProxy(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	leases, err := p.m.leasesOf(p.confs.Egress.Name, p.id)
	if err != nil {
		return err
	}
	if len(leases) != 1 {
		return fmt.Errorf("%w: %d addresses of the egress network, want 1", ErrMismatch, len(leases))
	}
	pol, err := readPolicy(p.dir)
	if err != nil {
		return err
	}
	table, err := proxyTable(p.confs.Internal.Bridge, pol)
	if err != nil {
		return err
	}
	diff, err := diffNS(ProxyPath(p.dir), wantProxy(p.confs, leases[0].addr, table.shape))
	if err != nil {
		return fmt.Errorf("verify the proxy's namespace: %w", err)
	}
	// Another bottle may be writing the host's table: the lock excludes that.
	l, err := p.m.acquire(ctx)
	if err != nil {
		return err
	}
	host, err := p.diffHost()
	l.release()
	if err != nil {
		return fmt.Errorf("verify the host's side of the network: %w", err)
	}
	return errors.Join(mismatch("proxy's namespace: ", diff), mismatch("", host))
}

func diffNS(ns string, want expected) (diff []string, err error) {
	err = Do(ns, func() error {
		diff, err = want.diff()
		return err
	})
	return diff, err
}

func mismatch(prefix string, diff []string) error {
	if len(diff) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s%s", ErrMismatch, prefix, strings.Join(diff, "; "))
}

// expected is the exact contents of a namespace.
type expected struct {
	addrs  map[string]string // link to its one address
	routes []string
	bridge string // has one port, whose name CNI generates; empty: no ports
	chains map[string]chainShape
}

func wantAgent() expected {
	seg := segment.Agent
	return expected{
		addrs:  map[string]string{"lo": "127.0.0.1/8", nicName: seg.String()},
		routes: []string{route(seg.Masked(), netip.Addr{}, nicName)},
	}
}

func wantProxy(confs *cniconf.Networks, addr netip.Addr, chains map[string]chainShape) expected {
	in, out := confs.Internal, confs.Egress.Subnet
	return expected{
		addrs: map[string]string{
			"lo": "127.0.0.1/8", in.Bridge: segment.Proxy.String(),
			nicName: netip.PrefixFrom(addr, out.Bits()).String(),
		},
		routes: []string{
			route(netip.PrefixFrom(netip.IPv4Unspecified(), 0), gateway(out), nicName),
			route(out, netip.Addr{}, nicName),
			route(in.Subnet, netip.Addr{}, in.Bridge),
		},
		bridge: in.Bridge,
		chains: chains,
	}
}

// gateway returns the bridge's address: host-local uses the subnet's first.
func gateway(subnet netip.Prefix) netip.Addr { return subnet.Addr().Next() }

func route(dst netip.Prefix, via netip.Addr, dev string) string {
	if via.IsValid() {
		return fmt.Sprintf("%s via %s dev %s", dst, via, dev)
	}
	return fmt.Sprintf("%s dev %s", dst, dev)
}

// diff compares the thread's namespace with e.
func (e expected) diff() ([]string, error) {
	diff := diffSettings(nsSettings)
	names, d, err := e.diffLinks()
	if err != nil {
		return nil, err
	}
	diff = append(diff, d...)
	got, err := routes(names)
	if err != nil {
		return nil, err
	}
	diff = append(diff, diffLists("route", got, e.routes)...)
	shape, err := tableShape()
	if err != nil {
		return nil, err
	}
	return append(diff, diffChains(shape, e.chains)...), nil
}

// diffChains requires the same chains and policies, and in each chain at least the
// rules of a single bottle: other bottles may be added and removed.
func diffChains(got, want map[string]chainShape) (diff []string) {
	for _, name := range slices.Sorted(maps.Keys(want)) {
		w, g := want[name], got[name]
		_, there := got[name]
		switch {
		case !there:
			diff = append(diff, "missing nftables chain "+name)
		case g.rules < w.rules || g.drop != w.drop:
			diff = append(diff, fmt.Sprintf("nftables chain %s has %d rules and default drop %t, want %d and %t", name, g.rules, g.drop, w.rules, w.drop))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[name]; !ok {
			diff = append(diff, "unexpected nftables chain "+name)
		}
	}
	return diff
}

// diffLinks also returns the links' names by index.
func (e expected) diffLinks() (map[int]string, []string, error) {
	links, err := retryDump(netlink.LinkList)
	if err != nil {
		return nil, nil, fmt.Errorf("list links: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	var diff, have, wantPorts, havePorts []string
	if e.bridge != "" {
		wantPorts = []string{"veth on " + e.bridge}
	}
	for _, l := range links {
		a := l.Attrs()
		addrs, err := retryDump(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
		if err != nil {
			return nil, nil, fmt.Errorf("list the addresses of %s: %w", a.Name, err)
		}
		for _, addr := range addrs {
			have = append(have, a.Name+" "+addr.IPNet.String())
		}
		_, known := e.addrs[a.Name]
		switch {
		case known && a.Flags&unix.IFF_UP == 0:
			diff = append(diff, a.Name+" is down")
		case a.MasterIndex != 0:
			havePorts = append(havePorts, l.Type()+" on "+names[a.MasterIndex])
		case !known && a.Flags&unix.IFF_UP != 0:
			// A link that is down and has no address is the fallback device of a
			// tunnel module, which every namespace has and which cannot be deleted.
			diff = append(diff, "unexpected link "+a.Name)
		}
		if known || a.MasterIndex != 0 {
			diff = append(diff, diffSettings(linkSettings(a.Name))...)
		}
	}
	var want []string
	for name, addr := range e.addrs {
		want = append(want, name+" "+addr)
	}
	diff = append(diff, diffLists("port", havePorts, wantPorts)...)
	return names, append(diff, diffLists("address", have, want)...), nil
}

// routes lists the unicast routes of all tables and both families.
func routes(names map[int]string) ([]string, error) {
	all := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
	var out []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := retryDump(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, all, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range list {
			if r.Type != unix.RTN_UNICAST {
				continue
			}
			via, _ := netip.AddrFromSlice(r.Gw)
			out = append(out, route(prefixOf(r.Dst), via.Unmap(), names[r.LinkIndex]))
		}
	}
	return out, nil
}

// diffLists returns what is in only one of the lists.
func diffLists(what string, got, want []string) (diff []string) {
	for _, w := range want {
		if !slices.Contains(got, w) {
			diff = append(diff, fmt.Sprintf("missing %s %s", what, w))
		}
	}
	for i, g := range got {
		if !slices.Contains(want, g) || slices.Contains(got[:i], g) {
			diff = append(diff, fmt.Sprintf("unexpected %s %s", what, g))
		}
	}
	return diff
}

// diffHost compares the host's end of the proxy's link, and what bottles share.
func (p *Pair) diffHost() (diff []string, err error) {
	bridge := p.confs.Egress.Bridge
	port, err := p.hostPort()
	if err != nil {
		return nil, err
	}
	b, err := netlink.LinkByName(bridge)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", bridge, err)
	}
	if port.Attrs().MasterIndex != b.Attrs().Index {
		diff = append(diff, port.Attrs().Name+" is not a port of "+bridge)
	} else if info, err := netlink.LinkGetProtinfo(port); err != nil {
		return nil, fmt.Errorf("read port %s: %w", port.Attrs().Name, err)
	} else if !info.Isolated {
		diff = append(diff, port.Attrs().Name+" is not isolated from the bridge's other ports")
	}
	diff = append(diff, diffSettings([]setting{
		{"ipv6/conf/" + bridge + "/disable_ipv6", "1"},
		{"ipv6/conf/" + port.Attrs().Name + "/disable_ipv6", "1"},
		{"ipv4/ip_forward", "1"},
	})...)
	table, err := p.m.diffHostTable(p.confs.Egress)
	return append(diff, table...), err
}

// hostPort returns the host's end of the proxy's veth pair.
func (p *Pair) hostPort() (netlink.Link, error) {
	var peer int
	err := Do(ProxyPath(p.dir), func() error {
		l, err := netlink.LinkByName(nicName)
		if err == nil {
			peer = l.Attrs().ParentIndex
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("find the proxy's %s: %w", nicName, err)
	}
	l, err := netlink.LinkByIndex(peer)
	if err != nil {
		return nil, fmt.Errorf("find the host's end of the proxy's %s: %w", nicName, err)
	}
	return l, nil
}
