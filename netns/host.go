package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/cni-conf"
)

// What is in this file changes the host's namespace and wants the lock held,
// but for what only looks.

// bridgeGroup is the interface group that marks a bridge as bottle's: "bott".
// The kernel takes it together with the name, so no bridge of ours is ever
// without it.
const bridgeGroup = 0x626f7474

// ensureBridge makes the egress network's bridge, unless it is there, and turns
// IPv6 off on it before CNI sets it up: by its link-local address a bottle would
// reach the host.
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
			return fmt.Errorf("make the bridge %s: %w", name, err)
		}
	} else if !ours(l) {
		return fmt.Errorf("the host has an interface %s already, a %s that is not bottle's", name, l.Type())
	}
	return disableIPv6(name)
}

func ours(bridge netlink.Link) bool {
	return bridge.Type() == "bridge" && bridge.Attrs().Group == bridgeGroup
}

// deleteBridge leaves alone what has the name but is not bottle's.
func deleteBridge(name string) error {
	l, err := linkByName(name)
	if l == nil || !ours(l) {
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

// deleteLink is no error if there is no such link.
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

// dump repeats a listing that changes made at the same time interrupted.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	for range 100 {
		out, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return list()
}

// ports lists the interfaces that bottle's bridge joins; none if there is no
// bridge. The alias of each is its bottle's id.
func ports(bridge string) ([]netlink.Link, error) {
	b, err := linkByName(bridge)
	if b == nil || !ours(b) {
		return nil, err
	}
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list the ports of %s: %w", bridge, err)
	}
	var out []netlink.Link
	for _, l := range links {
		if l.Attrs().MasterIndex == b.Attrs().Index {
			out = append(out, l)
		}
	}
	return out, nil
}

// deletePorts deletes those ports that are gone's, by the id of their bottle.
func deletePorts(bridge string, gone func(id string) bool) error {
	joined, err := ports(bridge)
	errs := []error{err}
	for _, l := range joined {
		if id := l.Attrs().Alias; id != "" && gone(id) {
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
	if h.closed, h.links, err = m.formerLinks(); err != nil {
		return err
	}
	for _, l := range leases {
		dir, err := m.bottleDir(l.id)
		if err != nil {
			continue // not a bottle's: it gets no exception
		}
		p, err := readPolicy(dir)
		if err != nil {
			// It is empty then, which allows less; the others are not to suffer.
			m.log.Error("no exceptions for a bottle", "id", l.id, "error", err)
		}
		h.resolvers = append(h.resolvers, pairsOf(l.addr, p.Resolvers)...)
		h.allow = append(h.allow, routesOf(l.addr, p.Allow)...)
	}
	return errors.Join(writeHostTable(h), openForward(conf.Bridge))
}

func pairsOf(from netip.Addr, to []netip.Addr) []addrPair {
	out := make([]addrPair, len(to))
	for i, a := range to {
		out[i] = addrPair{from, a}
	}
	return out
}

// connected lists the subnets that the host is in, but for the egress network:
// the kernel's own routes. They may be public addresses.
func connected(bridge string) ([]netip.Prefix, error) {
	routes, err := dump(func() ([]netlink.Route, error) {
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

// hostAddresses lists the host's subnets and each of its addresses, but for the
// egress network's.
func hostAddresses(bridge string) ([]netip.Prefix, error) {
	out, err := connected(bridge)
	if err != nil {
		return nil, err
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	for _, a := range addrs {
		addr := prefixOf(a.IPNet).Addr()
		out = append(out, netip.PrefixFrom(addr, addr.BitLen()))
	}
	return out, nil
}

// prefixOf is a route's destination; that of a default route has 0 bits.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	addr, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits)
}

// rememberForwarding writes down, once, the settings that the bridge plugin
// changes when it turns ip_forward on: a change of that one sets all the others
// (inet_forward_change in net/ipv4/devinet.c).
func (m *Manager) rememberForwarding() error {
	if _, err := os.Lstat(m.sysctlFile()); err == nil {
		return nil
	}
	keys := []string{"ipv4/ip_forward", "ipv4/conf/all/accept_redirects"}
	files, err := filepath.Glob(filepath.Join(sysctlDir, "ipv4/conf/*/forwarding"))
	if err != nil {
		return fmt.Errorf("list forwarding settings: %w", err)
	}
	for _, f := range files {
		keys = append(keys, strings.TrimPrefix(f, sysctlDir+"/"))
	}
	var text strings.Builder
	for _, key := range keys {
		value, err := readSysctl(key)
		if errors.Is(err, os.ErrNotExist) {
			continue // the interface has gone
		}
		if err != nil {
			return fmt.Errorf("remember the host's %s: %w", key, err)
		}
		fmt.Fprintf(&text, "%s %s\n", key, value)
	}
	return replaceFile(m.sysctlFile(), []byte(text.String()))
}

// formerSettings reads what rememberForwarding wrote down: nothing, if no bottle
// runs.
func (m *Manager) formerSettings() ([]setting, error) {
	data, err := os.ReadFile(m.sysctlFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the host's former settings: %w", err)
	}
	var out []setting
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		out = append(out, setting{key, value})
	}
	return out, nil
}

// formerLinks tells which links the host had when rememberForwarding was called,
// and which of them it forwarded nothing from: none, if it forwarded already.
func (m *Manager) formerLinks() (closed, links []string, err error) {
	former, err := m.formerSettings()
	if err != nil || !slices.Contains(former, setting{"ipv4/ip_forward", "0"}) {
		return nil, nil, err
	}
	for _, s := range former {
		name, ok := strings.CutSuffix(strings.TrimPrefix(s.key, "ipv4/conf/"), "/forwarding")
		if !ok || name == "all" || name == "default" {
			continue
		}
		links = append(links, name)
		if s.value == "0" {
			closed = append(closed, name)
		}
	}
	return closed, links, nil
}

// restoreForwarding puts back what rememberForwarding wrote down.
func (m *Manager) restoreForwarding() error {
	former, err := m.formerSettings()
	if err != nil || former == nil {
		return err
	}
	var errs []error
	for _, s := range former {
		now, err := readSysctl(s.key)
		if err == nil && now != s.value {
			err = writeSysctl(s.key, s.value)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("put back the host's %s: %w", s.key, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.Remove(m.sysctlFile()); err != nil {
		return fmt.Errorf("remove the host's former settings: %w", err)
	}
	return nil
}
