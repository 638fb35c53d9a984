package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/cni-conf"
	"github.com/bot-bottle/bottle/internal/lazyregexp"
)

// Functions in this file that change the host's namespace require the lock.

// bridgeGroup is the interface group that identifies bottle's bridge: "bott" in
// ASCII. The kernel sets it when it creates the link, so the bridge never exists
// without it.
const bridgeGroup = 0x626f7474

// ensureBridge creates the egress network's bridge unless it exists, and disables
// IPv6 on it before CNI sets it up: by its link-local address a bottle would reach
// the host.
func ensureBridge(name string) error {
	l, err := linkByName(name)
	if err != nil {
		return err
	}
	if l == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		attrs.Group = bridgeGroup
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("create bridge %s: %w", name, err)
		}
	} else if !isOwnBridge(l) {
		return fmt.Errorf("interface %s already exists on the host and is not bottle's (type %s)", name, l.Type())
	}
	return disableIPv6(name)
}

func isOwnBridge(l netlink.Link) bool {
	return l.Type() == "bridge" && l.Attrs().Group == bridgeGroup
}

// deleteBridge ignores an interface of that name that bottle did not create.
func deleteBridge(name string) error {
	l, err := linkByName(name)
	if l == nil || !isOwnBridge(l) {
		return err
	}
	return deleteLink(name)
}

// linkByName returns nil if there is no such link.
func linkByName(name string) (netlink.Link, error) {
	l, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", name, err)
	}
	return l, nil
}

// deleteLink succeeds if there is no such link.
func deleteLink(name string) error {
	l, err := linkByName(name)
	if l == nil {
		return err
	}
	if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete interface %s: %w", name, err)
	}
	return nil
}

// retryDump repeats a netlink listing that a concurrent change interrupted.
func retryDump[T any](list func() ([]T, error)) ([]T, error) {
	for range 100 {
		out, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return list()
}

// bridgePorts lists the ports of bottle's bridge; none if there is no bridge. The
// alias of each port is the id of its bottle.
func bridgePorts(bridge string) ([]netlink.Link, error) {
	b, err := linkByName(bridge)
	if b == nil || !isOwnBridge(b) {
		return nil, err
	}
	return portsOf(b)
}

// portsOf returns the ports of a bridge in the calling thread's namespace.
func portsOf(b netlink.Link) ([]netlink.Link, error) {
	links, err := retryDump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list the ports of %s: %w", b.Attrs().Name, err)
	}
	var out []netlink.Link
	for _, l := range links {
		if l.Attrs().MasterIndex == b.Attrs().Index {
			out = append(out, l)
		}
	}
	return out, nil
}

// pluginPort matches the names that CNI's bridge plugin gives to ports (containernetworking
// plugins, pkg/ip).
var pluginPort = lazyregexp.New(`^veth[0-9a-f]{8}$`)

// deleteUnnamedPorts deletes the ports that got no alias, because an attachment was
// interrupted between the plugin and isolate. The caller holds the network lock, as every
// attachment does. The kernel deletes such a port too, some time after its namespace; until
// then it would look like a port of a bottle.
func deleteUnnamedPorts(bridge string) error {
	ports, err := bridgePorts(bridge)
	errs := []error{err}
	for _, l := range ports {
		if l.Attrs().Alias == "" && pluginPort().MatchString(l.Attrs().Name) {
			errs = append(errs, deleteLink(l.Attrs().Name))
		}
	}
	return errors.Join(errs...)
}

// deletePorts deletes the ports of the bottles for which match returns true.
func deletePorts(bridge string, match func(id string) bool) error {
	ports, err := bridgePorts(bridge)
	errs := []error{err}
	for _, l := range ports {
		if id := l.Attrs().Alias; id != "" && match(id) {
			errs = append(errs, deleteLink(l.Attrs().Name))
		}
	}
	return errors.Join(errs...)
}

// writeHost writes the host's table for the bottles that are attached now.
func (m *Manager) writeHost(conf *cniconf.List) error {
	leases, err := m.leases(conf.Name)
	if err != nil {
		return err
	}
	local, err := hostAddresses(conf.Bridge)
	if err != nil {
		return err
	}
	h := hostRules{bridge: conf.Bridge, subnet: conf.Subnet, local: local}
	if h.unforwarded, h.links, err = m.savedLinks(); err != nil {
		return err
	}
	for _, l := range leases {
		dir, err := m.bottleDir(l.id)
		if err != nil {
			continue // the lease is not a bottle's: it gets no exception
		}
		p, err := readPolicy(dir)
		if err != nil {
			// The policy is then empty, which allows less. Other bottles must not
			// fail because of it.
			m.log.Error("no exceptions for bottle: cannot read its policy", "id", l.id, "error", err)
		}
		h.resolvers = append(h.resolvers, pairsOf(l.addr, p.Resolvers)...)
		if len(p.Allow) > 0 {
			h.allow = append(h.allow, allowance{l.addr, p.Allow})
		}
	}
	return errors.Join(writeHostTable(h), addForwardRules(conf.Bridge))
}

func pairsOf(from netip.Addr, to []netip.Addr) []addrPair {
	out := make([]addrPair, len(to))
	for i, a := range to {
		out[i] = addrPair{from, a}
	}
	return out
}

// connectedSubnets lists the subnets of the host's links except the egress
// network, from the routes that the kernel adds. They may be public.
func connectedSubnets(bridge string) ([]netip.Prefix, error) {
	routes, err := retryDump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: unix.RTPROT_KERNEL}, netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return nil, fmt.Errorf("list the host's subnets: %w", err)
	}
	b, err := linkByName(bridge)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, r := range routes {
		dst := prefixOf(r.Dst)
		if dst.Bits() > 0 && (b == nil || r.LinkIndex != b.Attrs().Index) {
			out = append(out, dst)
		}
	}
	return out, nil
}

// hostAddresses lists the host's subnets, except the egress network, and all of
// its addresses.
func hostAddresses(bridge string) ([]netip.Prefix, error) {
	out, err := connectedSubnets(bridge)
	if err != nil {
		return nil, err
	}
	own, err := ownAddresses()
	return append(out, own...), err
}

// ownAddresses returns the IPv4 addresses of the thread's namespace.
func ownAddresses() ([]netip.Prefix, error) {
	addrs, err := retryDump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	var out []netip.Prefix
	for _, a := range addrs {
		addr := prefixOf(a.IPNet).Addr()
		out = append(out, netip.PrefixFrom(addr, addr.BitLen()))
	}
	return out, nil
}

// prefixOf converts a route's destination; a default route becomes 0.0.0.0/0.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	addr, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits)
}
