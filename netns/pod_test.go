package netns

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Addresses of a pod as CNI's ptp plugin makes it: a /24, a route to the gateway and a
// default route through it. The proxy's address is that of a Service.
const (
	podAddr    = "10.244.3.7/24"
	podGateway = "10.244.3.1"
	podProxy   = "10.96.0.55"
)

// inPod runs fn in a new network namespace with eth0 of a pod.
func inPod(t *testing.T, fn func(eth0 netlink.Link) error) {
	t.Helper()
	path, nodePath := filepath.Join(runDir, "pod"), filepath.Join(runDir, "node")
	t.Cleanup(func() {
		if err := errors.Join(unpin(path), unpin(nodePath)); err != nil {
			t.Error(err)
		}
	})
	if err := pin(nodePath, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(nodePath)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }() // read only
	node := int(file.Fd())
	err = pin(path, func() error {
		// The node's end moves to a namespace of its own, as a node's is not the pod's.
		eth0 := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "node0", PeerNamespace: netlink.NsFd(node)}
		if err := netlink.LinkAdd(eth0); err != nil {
			return err
		}
		if err := configurePod(eth0); err != nil {
			return err
		}
		return fn(eth0)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func configurePod(eth0 netlink.Link) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := errors.Join(netlink.LinkSetUp(lo), netlink.LinkSetUp(eth0)); err != nil {
		return err
	}
	for _, text := range []string{podAddr, "fd00:244::7/64"} {
		addr, err := netlink.ParseAddr(text)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(eth0, addr); err != nil {
			return err
		}
	}
	gateway := net.ParseIP(podGateway)
	host := net.IPNet{IP: gateway, Mask: net.CIDRMask(32, 32)}
	v6 := net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	for _, r := range []netlink.Route{
		{LinkIndex: eth0.Attrs().Index, Dst: &host, Scope: netlink.SCOPE_LINK},
		{LinkIndex: eth0.Attrs().Index, Gw: gateway},
		{LinkIndex: eth0.Attrs().Index, Dst: &v6, Gw: net.ParseIP("fd00:244::1")},
	} {
		if err := netlink.RouteAdd(&r); err != nil {
			return err
		}
	}
	return nil
}

// podReaches reports whether the namespace has a way to send a datagram to an address.
// Nothing is sent.
func podReaches(addr string) bool {
	conn, err := net.Dial("udp", net.JoinHostPort(addr, "9"))
	if err == nil {
		_ = conn.Close()
	}
	return err == nil
}

func TestWall(t *testing.T) {
	closed := map[string]string{
		"gateway": podGateway, "neighbor": "10.244.3.9", "node": "192.0.2.10", "API": "10.96.0.1", "metadata": "169.254.169.254",
		"world": "198.51.100.1", "IPv6": "2001:db8::1", "IPv6 neighbor": "fd00:244::9", "link-local": "fe80::1%eth0",
	}
	inPod(t, func(eth0 netlink.Link) error {
		for what, addr := range closed {
			if !podReaches(addr) {
				t.Errorf("control: %s (%s) cannot be reached before", what, addr)
			}
		}
		for i := range 2 { // the second finds nothing to do
			if err := Wall(netip.MustParseAddr(podProxy)); err != nil {
				return err
			}
			for what, addr := range closed {
				if podReaches(addr) {
					t.Errorf("call %d: %s (%s) can be reached", i+1, what, addr)
				}
			}
			if !podReaches(podProxy) || !podReaches("127.0.0.1") {
				t.Errorf("call %d: the proxy or loopback cannot be reached", i+1)
			}
		}
		routes, err := netlink.RouteList(eth0, unix.AF_INET)
		if err != nil {
			return err
		}
		if len(routes) != 1 || routes[0].Dst.String() != podProxy+"/32" || routes[0].Gw.String() != podGateway {
			t.Errorf("routes %v", routes)
		}
		return nil
	})
}

// Without a way to the proxy nothing is changed, and without privileges the error says so.
func TestWallErrors(t *testing.T) {
	t.Run("no way", testWallNoWay)
	t.Run("no privilege", testWallNoPrivilege)
}

func testWallNoWay(t *testing.T) {
	inPod(t, func(eth0 netlink.Link) error {
		if err := Wall(netip.MustParseAddr("2001:db8::1")); err == nil || !strings.Contains(err.Error(), "not an IPv4") {
			t.Errorf("to an IPv6 address: %v", err)
		}
		if err := netlink.RouteDel(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: &defaultRoute}); err != nil {
			return err
		}
		if err := Wall(netip.MustParseAddr(podProxy)); err == nil || !strings.Contains(err.Error(), "no default route") {
			t.Errorf("without a default route: %v", err)
		}
		if !podReaches(podGateway) {
			t.Error("the routes were deleted although there is none to the proxy")
		}
		return nil
	})
}

func testWallNoPrivilege(t *testing.T) {
	inPod(t, func(netlink.Link) error {
		caps := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var old [2]unix.CapUserData
		if err := unix.Capget(&caps, &old[0]); err != nil {
			return err
		}
		without := old
		without[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		if err := unix.Capset(&caps, &without[0]); err != nil {
			return err
		}
		err := Wall(netip.MustParseAddr(podProxy))
		if cerr := unix.Capset(&caps, &old[0]); cerr != nil {
			return cerr
		}
		if !errors.Is(err, syscall.EPERM) || !podReaches("198.51.100.1") {
			t.Errorf("without CAP_NET_ADMIN: %v", err)
		}
		return nil
	})
}
