package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The world is a network namespace at the other end of the host's only uplink. It has
// every address outside the host that a test uses.
const worldNS = "/run/world.netns"

const (
	hostAddr   = "192.0.2.2"
	publicAddr = "198.51.101.66"
	lanAddr    = "203.0.114.9" // on the uplink, looks public
	private    = "10.99.0.10"
	metadata   = "169.254.169.254"
)

func makeWorld() error {
	if err := pin(worldNS, setUpNS); err != nil {
		return err
	}
	world, err := os.Open(worldNS)
	if err != nil {
		return err
	}
	defer func() { _ = world.Close() }()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "up0"
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "down0", PeerNamespace: netlink.NsFd(int(world.Fd()))}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("create the uplink: %w", err)
	}
	if err := errors.Join(
		configure("lo", "127.0.0.1/8"), configure("up0", hostAddr+"/24", "203.0.114.1/24"),
		Do(worldNS, func() error {
			return errors.Join(
				configure("lo", publicAddr+"/32", private+"/32", metadata+"/32"),
				configure("down0", "192.0.2.1/24", lanAddr+"/24"),
				// So that a packet that leaks without masquerading is answered.
				addRoute("10.0.0.0/8", hostAddr),
			)
		}),
	); err != nil {
		return err
	}
	return addRoute("0.0.0.0/0", "192.0.2.1")
}

func configure(name string, addrs ...string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if err := setAddress(name, netip.MustParsePrefix(a)); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return netlink.LinkSetUp(l)
}

func addRoute(dst, via string) error {
	_, n, err := net.ParseCIDR(dst)
	if err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{Dst: n, Gw: net.ParseIP(via)}); err != nil {
		return fmt.Errorf("route to %s via %s: %w", dst, via, err)
	}
	return nil
}

// inNS runs fn in a namespace; the empty path means the host's.
func inNS(t testing.TB, ns string, fn func() error) {
	t.Helper()
	run := func(fn func() error) error { return fn() }
	if ns != "" {
		run = func(fn func() error) error { return Do(ns, fn) }
	}
	if err := run(fn); err != nil {
		t.Fatal(err)
	}
}

// victim listens on TCP and UDP in a namespace and records what arrives.
type victim struct {
	addr string
	seen chan string // payloads of datagrams
}

func listen(t testing.TB, ns, addr string) *victim {
	t.Helper()
	v := &victim{addr: addr, seen: make(chan string, 16)}
	inNS(t, ns, func() error {
		tcp, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = tcp.Close() })
		udp, err := net.ListenPacket("udp", addr)
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = udp.Close() })
		go v.serveTCP(tcp)
		go v.serveUDP(udp)
		return nil
	})
	return v
}

func (v *victim) serveTCP(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = c.Write([]byte("hello"))
		_ = c.Close()
	}
}

func (v *victim) serveUDP(c net.PacketConn) {
	buf := make([]byte, 64)
	for {
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		select {
		case v.seen <- string(buf[:n]):
		default:
		}
	}
}

const (
	probeTime   = 250 * time.Millisecond // every victim is one veth pair away
	controlTime = 5 * time.Second
)

// reaches reports whether TCP from the namespace gets the victim's greeting.
func reaches(ns, addr string, limit time.Duration) bool {
	return greeted(limit, func(ctx context.Context) (net.Conn, error) { return DialIn(ctx, ns, "tcp", addr) })
}

func greeted(limit time.Duration, dial func(context.Context) (net.Conn, error)) bool {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c, err := dial(ctx)
	if err != nil {
		return false
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(limit))
	buf := make([]byte, 5)
	n, err := c.Read(buf)
	return err == nil && string(buf[:n]) == "hello"
}

// proxyUser is the user that proxies run as.
const proxyUser = 65534

// proxyReaches is reaches for a proxy's socket.
func proxyReaches(t testing.TB, ns, addr string, limit time.Duration) bool {
	t.Helper()
	return greeted(limit, func(ctx context.Context) (net.Conn, error) { return dialAs(ctx, t, proxyUser, ns, "tcp", addr) })
}

// dialAs is DialIn for a socket that belongs to another user: the one that the thread
// uses for files when it opens the socket (setfsuid(2)).
func dialAs(ctx context.Context, t testing.TB, uid int, ns, network, addr string) (conn net.Conn, err error) {
	t.Helper()
	err = Do(ns, func() error {
		if _, err := unix.SetfsuidRetUid(uid); err != nil {
			return err
		}
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, addr)
		_, rerr := unix.SetfsuidRetUid(0)
		return errors.Join(err, rerr)
	})
	return conn, err
}

// datagramReaches reports whether the victim receives a datagram sent from the
// namespace.
func datagramReaches(t testing.TB, ns string, v *victim, limit time.Duration) bool {
	t.Helper()
	return datagramReachesAs(t, 0, ns, v, limit)
}

func datagramReachesAs(t testing.TB, uid int, ns string, v *victim, limit time.Duration) bool {
	t.Helper()
	word := fmt.Sprintf("%s %d", t.Name(), time.Now().UnixNano())
	word = word[max(0, len(word)-60):]
	c, err := dialAs(context.Background(), t, uid, ns, "udp", v.addr)
	if err != nil {
		return false
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Write([]byte(word)); err != nil {
		return false
	}
	timeout := time.After(limit)
	for {
		select {
		case got := <-v.seen:
			if got == word {
				return true
			}
		case <-timeout:
			return false
		}
	}
}

// hostState returns everything on the host that a bottle's network might change.
func hostState(t testing.TB) []string {
	t.Helper()
	var out []string
	links, err := retryDump(netlink.LinkList)
	if err != nil {
		t.Fatal(err)
	}
	names := map[int]string{}
	for _, l := range links {
		a := l.Attrs()
		names[a.Index] = a.Name
		out = append(out, fmt.Sprintf("link %s %s up=%v", a.Name, l.Type(), a.Flags&unix.IFF_UP != 0))
		addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
		if err != nil {
			t.Fatal(err)
		}
		for _, addr := range addrs {
			out = append(out, "address "+a.Name+" "+addr.IPNet.String())
		}
	}
	rs, err := routes(names)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rs {
		if !strings.Contains(r, "fe80::") && !strings.Contains(r, "ff00::") {
			out = append(out, "route "+r)
		}
	}
	out = append(out, nftTables(t)...)
	for _, glob := range []string{"ipv4/ip_forward", "ipv4/conf/*/forwarding", "ipv4/conf/*/accept_redirects", "ipv6/conf/*/forwarding", "ipv6/conf/*/disable_ipv6"} {
		out = append(out, sysctls(t, glob)...)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		out = append(out, "mount "+strings.TrimSpace(line))
	}
	out = append(out, files(t, "/run")...)
	slices.Sort(out)
	return out
}

func nftTables(t testing.TB) (out []string) {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	list, err := conn.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, tab := range list {
		out = append(out, fmt.Sprintf("table %d %s", tab.Family, tab.Name))
	}
	chains, err := conn.ListChains()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range chains {
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("chain %s %s with %d rules", c.Table.Name, c.Name, len(rules)))
	}
	return out
}

// checkUnchanged fails the test unless the host's state equals before.
func checkUnchanged(t testing.TB, before []string) {
	t.Helper()
	after := hostState(t)
	for _, s := range after {
		if !slices.Contains(before, s) {
			t.Errorf("left behind: %s", s)
		}
	}
	for _, s := range before {
		if !slices.Contains(after, s) {
			t.Errorf("missing: %s", s)
		}
	}
}

func sysctls(t testing.TB, glob string) (out []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(sysctlDir, glob))
	if err != nil || len(files) == 0 {
		t.Fatalf("no settings match %s (%v)", glob, err)
	}
	for _, f := range files {
		key := strings.TrimPrefix(f, sysctlDir+"/")
		value, err := readSysctl(key)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, "setting "+key+" "+value)
	}
	return out
}

func files(t testing.TB, dir string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		out = append(out, "file "+path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
