package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Destinations of default routes are spelled out: gVisor deletes no route without one.
var (
	defaultRoute   = net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	defaultRouteV6 = net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
)

// Wall leaves the calling process's network namespace, which is that of a pod, one
// destination: the proxy's IPv4 address, through the gateway of the default route. It
// removes every other route of links but lo, and their IPv6 addresses: without routes,
// gVisor would still reach neighbors over link-local ones. It can be repeated, as a restarted
// init container does.
func Wall(proxy netip.Addr) error {
	if !proxy.Is4() {
		return fmt.Errorf("the proxy's address %s is not an IPv4 address", proxy)
	}
	to := net.IPNet{IP: proxy.AsSlice(), Mask: net.CIDRMask(32, 32)}
	routes, err := podRoutes()
	if err != nil {
		return err
	}
	if err := routeToProxy(to, routes); err != nil {
		return err
	}
	// Their removal removes the routes to their networks.
	if err := removeIPv6(); err != nil {
		return err
	}
	if routes, err = podRoutes(); err != nil {
		return err
	}
	for _, r := range routes {
		if isTo(r, to) {
			continue
		}
		if err := deleteRoute(r); err != nil {
			return err
		}
	}
	return verifyWall(to)
}

// podLinks returns the links other than lo.
func podLinks() ([]netlink.Link, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return slices.DeleteFunc(links, func(l netlink.Link) bool { return l.Attrs().Flags&net.FlagLoopback != 0 }), nil
}

// podRoutes returns the routes of links other than lo, except for the kernel's own of
// local and multicast addresses.
func podRoutes() ([]netlink.Route, error) {
	links, err := podLinks()
	if err != nil {
		return nil, err
	}
	var out []netlink.Route
	for _, l := range links {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			routes, err := netlink.RouteList(l, family)
			if err != nil {
				return nil, fmt.Errorf("list routes of %s: %w", l.Attrs().Name, err)
			}
			out = append(out, routes...)
		}
	}
	return out, nil
}

// eachIPv6 calls fn with each IPv6 address of links other than lo.
func eachIPv6(fn func(l netlink.Link, a netlink.Addr) error) error {
	links, err := podLinks()
	if err != nil {
		return err
	}
	for _, l := range links {
		addrs, err := netlink.AddrList(l, unix.AF_INET6)
		if err != nil {
			return fmt.Errorf("list IPv6 addresses of %s: %w", l.Attrs().Name, err)
		}
		for _, a := range addrs {
			if err := fn(l, a); err != nil {
				return err
			}
		}
	}
	return nil
}

// routeToProxy adds the route to the proxy, with the default route's gateway.
func routeToProxy(to net.IPNet, routes []netlink.Route) error {
	for _, r := range routes {
		if isTo(r, to) {
			return nil // added by an earlier call
		}
	}
	for _, r := range routes {
		if !isDefault(r) || r.Gw.To4() == nil {
			continue
		}
		route := netlink.Route{LinkIndex: r.LinkIndex, Dst: &to, Gw: r.Gw}
		if err := netlink.RouteAdd(&route); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add the route to the proxy %s: %w", to.IP, err)
		}
		return nil
	}
	return errors.New("the pod has no default route with a gateway")
}

func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}

func isTo(r netlink.Route, to net.IPNet) bool {
	return r.Dst != nil && r.Dst.String() == to.String()
}

func deleteRoute(r netlink.Route) error {
	switch {
	case !isDefault(r):
	case r.Family == unix.AF_INET6:
		r.Dst = &defaultRouteV6
	default:
		r.Dst = &defaultRoute
	}
	if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("delete the route to %s: %w", r.Dst, err)
	}
	return nil
}

func removeIPv6() error {
	return eachIPv6(func(l netlink.Link, a netlink.Addr) error {
		if err := netlink.AddrDel(l, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("delete the address %s of %s: %w", a.IPNet, l.Attrs().Name, err)
		}
		return nil
	})
}

// verifyWall reads what is left.
func verifyWall(to net.IPNet) error {
	routes, err := podRoutes()
	if err != nil {
		return err
	}
	found := false
	for _, r := range routes {
		if !isTo(r, to) {
			return fmt.Errorf("the pod still has a route to %s", r.Dst)
		}
		found = true
	}
	if !found {
		return fmt.Errorf("the pod has no route to the proxy %s", to.IP)
	}
	return eachIPv6(func(l netlink.Link, a netlink.Addr) error {
		return fmt.Errorf("%s still has the address %s", l.Attrs().Name, a.IPNet)
	})
}
