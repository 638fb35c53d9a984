package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

func TestCreateRemove(t *testing.T) {
	m := newManager(t)
	before := hostState(t)
	dir := makeBottleDir(t, "one")
	info, err := m.Check(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	if info.Bridge != "bottle0" || info.Egress != "10.210.0.0/16" || info.Internal != "10.77.0.0/30" || len(info.Changes) != 1 || info.Changes[0].Subject != SubjectForwarding {
		t.Errorf("Check: %+v", info)
	}
	if _, err := attach(ctx(t), m, dir, nil); err != nil {
		t.Fatal(err)
	}
	wantLeftovers(t, m, "namespace", "namespace", "lease", "bridge", "nftables table", "sysctl", "directory")
	if _, err := m.Check(ctx(t)); err != nil {
		t.Errorf("Check while a bottle runs: %v", err)
	}
	for range 2 { // the second finds nothing and succeeds
		if err := m.Remove(ctx(t), dir); err != nil {
			t.Fatal(err)
		}
	}
	wantLeftovers(t, m)
	removeBottleDir(t, dir)
	checkUnchanged(t, before)
}

func wantLeftovers(t *testing.T, m *Manager, kinds ...string) {
	t.Helper()
	found, err := m.Leftovers(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range found {
		got = append(got, r.Kind)
	}
	if strings.Join(got, ",") != strings.Join(kinds, ",") {
		t.Errorf("leftovers %v, want kinds %v", found, kinds)
	}
}

// ip_forward stays on if it was on before the first bottle.
func TestForwardingHostRestored(t *testing.T) {
	if err := writeSysctl("ipv4/ip_forward", "1"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := writeSysctl("ipv4/ip_forward", "0"); err != nil {
			t.Error(err)
		}
	})
	m := newManager(t)
	before := hostState(t)
	dir := makeBottleDir(t, "one")
	if _, err := attach(ctx(t), m, dir, nil); err != nil {
		t.Fatal(err)
	}
	if err := m.Remove(ctx(t), dir); err != nil {
		t.Fatal(err)
	}
	removeBottleDir(t, dir)
	checkUnchanged(t, before)
}

// If ip_forward was on before the first bottle, the last one's removal does not turn it
// on again: whoever turned it off meanwhile meant it.
func TestForwardingTurnedOff(t *testing.T) {
	if err := writeSysctl("ipv4/ip_forward", "1"); err != nil {
		t.Fatal(err)
	}
	m := newManager(t)
	p := newPair(t, m, "one")
	if err := writeSysctl("ipv4/ip_forward", "0"); err != nil {
		t.Fatal(err)
	}
	if err := m.VerifyHost(ctx(t)); !errors.Is(err, ErrFlushed) {
		t.Errorf("VerifyHost without forwarding: %v", err)
	}
	if err := m.Remove(ctx(t), p.dir); err != nil {
		t.Fatal(err)
	}
	if value, err := readSysctl("ipv4/ip_forward"); value != "0" {
		t.Errorf("ip_forward is %q after the removal, want 0 (%v)", value, err)
	}
}

// Only the last bottle's removal removes what bottles share.
func TestTwoConcurrent(t *testing.T) {
	m := newManager(t)
	before := hostState(t)
	listen(t, worldNS, publicAddr+":7000")
	dirs := []string{makeBottleDir(t, "one"), makeBottleDir(t, "two")}
	var errs [2]error
	var wg sync.WaitGroup
	for i, dir := range dirs {
		wg.Go(func() { _, errs[i] = attach(context.Background(), m, dir, nil) })
	}
	wg.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	if err := m.Remove(ctx(t), dirs[0]); err != nil {
		t.Fatal(err)
	}
	if !reaches(ProxyPath(dirs[1]), publicAddr+":7000", controlTime) {
		t.Error("the second bottle lost egress when the first was removed")
	}
	if err := m.Remove(ctx(t), dirs[1]); err != nil {
		t.Fatal(err)
	}
	removeBottleDir(t, dirs[0])
	removeBottleDir(t, dirs[1])
	checkUnchanged(t, before)
}

// Bottles are created and removed concurrently: none loses the shared resources to
// another's removal.
func TestChurn(t *testing.T) {
	m := newManager(t)
	before := hostState(t)
	names := []string{"a", "b", "c"}
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		dir := makeBottleDir(t, name)
		wg.Go(func() {
			for range 6 {
				_, err := attach(context.Background(), m, dir, nil)
				errs[i] = errors.Join(errs[i], err, m.Remove(context.Background(), dir))
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		removeBottleDir(t, makeBottleDir(t, name))
	}
	checkUnchanged(t, before)
}

func TestCreateTwice(t *testing.T) {
	m := newManager(t)
	p := newPair(t, m, "one")
	if _, err := m.Create(ctx(t), p.dir); !errors.Is(err, os.ErrExist) {
		t.Errorf("second Create in the same directory: %v", err)
	}
	if err := p.Verify(ctx(t)); err != nil {
		t.Errorf("Verify of the first network after a second Create: %v", err)
	}
}

func TestDirectoryNames(t *testing.T) {
	m := newManager(t)
	for _, dir := range []string{"/run", runDir, runDir + "/x", runDir + "/net/x", runDir + "/a/b/c", runDir + "/../x/y", runDir + "/a--b/c", runDir + "/.a/c"} {
		if _, err := m.Create(ctx(t), dir); err == nil {
			t.Errorf("Create accepted %s", dir)
		}
		if err := m.Remove(ctx(t), dir); err == nil {
			t.Errorf("Remove accepted %s", dir)
		}
	}
}

// TestVerifyDetects makes one change at a time in a correct network.
func TestVerifyDetects(t *testing.T) {
	m := newManager(t)
	p := newPair(t, m, "one")
	agent, proxy := AgentPath(p.dir), ProxyPath(p.dir)
	set := func(key, value string) func() error {
		return func() error { return writeSysctl(key, value) }
	}
	port := func(isolated bool) func() error {
		return func() error {
			l, err := p.hostPort()
			if err != nil {
				return err
			}
			return netlink.LinkSetIsolated(l, isolated)
		}
	}
	pol := func() error {
		was, err := readPolicy(p.dir)
		return errors.Join(err, writeProxyTable("internal0", was))
	}
	host := func() error { return m.writeHost(p.confs.Egress) }
	for _, tt := range []struct {
		name, ns    string
		damage, fix func() error
		want        string
	}{
		{"forwarding", proxy, set("ipv4/ip_forward", "1"), writeNSSettings, "proxy's namespace: ipv4/ip_forward is 1"},
		{"forwarding on one link", proxy, set("ipv4/conf/internal0/forwarding", "1"), set("ipv4/conf/internal0/forwarding", "0"), "ipv4/conf/internal0/forwarding is 1"},
		{"IPv6", agent, set("ipv6/conf/eth0/disable_ipv6", "0"), set("ipv6/conf/eth0/disable_ipv6", "1"), "agent's namespace: ipv6/conf/eth0/disable_ipv6 is 0"},
		{"IPv6 for new links", agent, set("ipv6/conf/default/disable_ipv6", "0"), set("ipv6/conf/default/disable_ipv6", "1"), "default/disable_ipv6 is 0"},
		{"default route", agent, func() error { return addRoute("0.0.0.0/0", "10.77.0.1") }, delRoute, "unexpected route 0.0.0.0/0 via 10.77.0.1 dev eth0"},
		{"address", agent, func() error { return setAddress("eth0", netip.MustParsePrefix("10.210.9.9/16")) }, delAddress("10.210.9.9/16"), "unexpected address eth0 10.210.9.9/16"},
		{"link", agent, addDummy, func() error { return deleteLink("extra0") }, "unexpected link extra0"},
		{"proxy's rules", proxy, removeTable, pol, "missing nftables chain input"},
		{"one of the proxy's rules", proxy, delRule("output"), pol, "nftables chain output has 7 rules"},
		{"one of the host's rules", "", delRule("forward"), host, "nftables chain forward has"},
		{"host's rules", "", removeTable, host, "missing nftables chain forward"},
		{"host's forwarding", "", set("ipv4/ip_forward", "0"), set("ipv4/ip_forward", "1"), "ipv4/ip_forward is 0, not 1"},
		{"isolation", "", port(false), port(true), "not isolated"},
		{"IPv6 on the bridge", "", set("ipv6/conf/bottle0/disable_ipv6", "0"), set("ipv6/conf/bottle0/disable_ipv6", "1"), "bottle0/disable_ipv6 is 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inNS(t, tt.ns, tt.damage)
			err := p.Verify(ctx(t))
			if !errors.Is(err, ErrMismatch) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Verify: %v, want %q", err, tt.want)
			}
			inNS(t, tt.ns, tt.fix)
			if err := p.Verify(ctx(t)); err != nil {
				t.Errorf("Verify after the fix: %v", err)
			}
		})
	}
}

// delRule deletes the first rule of a chain in bottle's table.
func delRule(chain string) func() error {
	return func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		table := &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
		rules, err := conn.GetRules(table, &nftables.Chain{Name: chain})
		if err != nil || len(rules) == 0 {
			return fmt.Errorf("no rules in %s: %w", chain, err)
		}
		return errors.Join(conn.DelRule(rules[0]), conn.Flush())
	}
}

func delRoute() error {
	_, dst, err := net.ParseCIDR("0.0.0.0/0")
	if err != nil {
		return err
	}
	return netlink.RouteDel(&netlink.Route{Dst: dst})
}

func delAddress(addr string) func() error {
	return func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(addr)
		if err != nil {
			return err
		}
		return netlink.AddrDel(l, a)
	}
}

func addDummy() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "extra0"
	l := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(l); err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}
