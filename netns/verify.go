package netns

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/cni-conf"
)

// ErrMismatch is wrapped when the network is not what it must be.
var ErrMismatch = errors.New("network is not as it must be")

// Verify reads back both namespaces and the proxy's place on the host:
// settings, links, addresses, routes, packet filters. The error wraps
// ErrMismatch and names all that differs.
func (p *Pair) Verify(ctx context.Context) error {
	return errors.Join(p.VerifyAgent(ctx), p.VerifyProxy(ctx))
}

// VerifyAgent is Verify's part on the agent's namespace, after AttachInternal.
// gVisor takes the addresses out of that namespace when it creates the sandbox,
// so it comes before that.
func (p *Pair) VerifyAgent(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	diff, err := differsIn(AgentPath(p.dir), agentExpects())
	if err != nil {
		return fmt.Errorf("verify the agent's namespace: %w", err)
	}
	return mismatch("agent's namespace: ", diff)
}

// VerifyProxy is Verify's part on the proxy's namespace and the host, after
// both attachments.
func (p *Pair) VerifyProxy(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	held, err := p.m.leasesOf(p.confs.Egress.Name, p.id)
	if err != nil {
		return err
	}
	if len(held) != 1 {
		return fmt.Errorf("%w: %d addresses of the egress network instead of 1", ErrMismatch, len(held))
	}
	pol, err := readPolicy(p.dir)
	if err != nil {
		return err
	}
	table, err := proxyTable(p.confs.Internal.Bridge, pol)
	if err != nil {
		return err
	}
	diff, err := differsIn(ProxyPath(p.dir), proxyExpects(p.confs, held[0].addr, table.shape))
	if err != nil {
		return fmt.Errorf("verify the proxy's namespace: %w", err)
	}
	host, err := p.hostDiffers()
	if err != nil {
		return fmt.Errorf("verify the host's side of the network: %w", err)
	}
	return errors.Join(mismatch("proxy's namespace: ", diff), mismatch("", host))
}

func differsIn(ns string, want expected) (diff []string, err error) {
	err = Do(ns, func() error {
		diff, err = want.differs()
		return err
	})
	return diff, err
}

func mismatch(where string, diff []string) error {
	if len(diff) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s%s", ErrMismatch, where, strings.Join(diff, "; "))
}

// expected is what a namespace must hold, and all it may.
type expected struct {
	addrs  map[string]string // link to its one address
	routes []string
	bridge string // joins one port, whose name CNI made up; empty: no ports
	chains map[string]chainShape
}

func agentExpects() expected {
	seg := cniconf.AgentAddress
	return expected{
		addrs:  map[string]string{"lo": "127.0.0.1/8", nicName: seg.String()},
		routes: []string{route(seg.Masked(), netip.Addr{}, nicName)},
	}
}

func proxyExpects(confs *cniconf.Networks, addr netip.Addr, chains map[string]chainShape) expected {
	in, out := confs.Internal, confs.Egress.Subnet
	return expected{
		addrs: map[string]string{
			"lo": "127.0.0.1/8", in.Bridge: ProxyAddress.String(),
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

// gateway is the bridge's address: host-local takes the subnet's first.
func gateway(subnet netip.Prefix) netip.Addr { return subnet.Addr().Next() }

func route(dst netip.Prefix, via netip.Addr, dev string) string {
	if via.IsValid() {
		return fmt.Sprintf("%s via %s dev %s", dst, via, dev)
	}
	return fmt.Sprintf("%s dev %s", dst, dev)
}

// differs compares the thread's namespace with what it must be.
func (e expected) differs() ([]string, error) {
	diff := differences(closed)
	names, d, err := e.linksDiffer()
	if err != nil {
		return nil, err
	}
	diff = append(diff, d...)
	got, err := routes(names)
	if err != nil {
		return nil, err
	}
	diff = append(diff, compare("route", got, e.routes)...)
	shape, err := tableShape()
	if err != nil {
		return nil, err
	}
	return append(diff, compareChains(shape, e.chains)...), nil
}

// compareChains wants the chains and their policies, and in each at least the
// rules that it has for a bottle alone: other bottles may come and go.
func compareChains(got, want map[string]chainShape) (diff []string) {
	for _, name := range slices.Sorted(maps.Keys(want)) {
		w, g := want[name], got[name]
		_, there := got[name]
		switch {
		case !there:
			diff = append(diff, "no nftables chain "+name)
		case g.rules < w.rules || g.drop != w.drop:
			diff = append(diff, fmt.Sprintf("nftables chain %s has %d rules and drops by default: %t, instead of %d and %t", name, g.rules, g.drop, w.rules, w.drop))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[name]; !ok {
			diff = append(diff, "unexpected nftables chain "+name)
		}
	}
	return diff
}

// linksDiffer also returns the links' names by index.
func (e expected) linksDiffer() (map[int]string, []string, error) {
	links, err := dump(netlink.LinkList)
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
		addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
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
			// One that is down and without address is a tunnel module's fallback
			// device, which every namespace gets and nobody can delete.
			diff = append(diff, "unexpected link "+a.Name)
		}
		if known || a.MasterIndex != 0 {
			diff = append(diff, differences(settingsOf(a.Name))...)
		}
	}
	var want []string
	for name, addr := range e.addrs {
		want = append(want, name+" "+addr)
	}
	diff = append(diff, compare("port", havePorts, wantPorts)...)
	return names, append(diff, compare("address", have, want)...), nil
}

// routes lists the unicast routes of all tables and both families.
func routes(names map[int]string) ([]string, error) {
	all := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
	var out []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := dump(func() ([]netlink.Route, error) {
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

// compare tells what is in one list and not in the other.
func compare(what string, got, want []string) (diff []string) {
	for _, w := range want {
		if !slices.Contains(got, w) {
			diff = append(diff, fmt.Sprintf("no %s %s", what, w))
		}
	}
	for i, g := range got {
		if !slices.Contains(want, g) || slices.Contains(got[:i], g) {
			diff = append(diff, fmt.Sprintf("unexpected %s %s", what, g))
		}
	}
	return diff
}

// hostDiffers looks at the host's end of the proxy's link, and at what bottles
// share.
func (p *Pair) hostDiffers() (diff []string, err error) {
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
		diff = append(diff, port.Attrs().Name+" is no port of "+bridge)
	} else if info, err := netlink.LinkGetProtinfo(port); err != nil {
		return nil, fmt.Errorf("read the port %s: %w", port.Attrs().Name, err)
	} else if !info.Isolated {
		diff = append(diff, port.Attrs().Name+" is not isolated from the bridge's other ports")
	}
	diff = append(diff, differences([]setting{
		{"ipv6/conf/" + bridge + "/disable_ipv6", "1"},
		{"ipv6/conf/" + port.Attrs().Name + "/disable_ipv6", "1"},
		{"ipv4/ip_forward", "1"},
	})...)
	table, err := p.m.hostTableDiffers(p.confs.Egress)
	return append(diff, table...), err
}

// hostPort finds the host's end of the veth whose other end is the proxy's.
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
