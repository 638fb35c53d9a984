package bottle

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/segment"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/runtime"
)

// minEscapes is the minimum number of attempts in the suite.
const minEscapes = 60

// privileges are the additional capabilities of privileged agents.
var privileges = []string{"CAP_NET_ADMIN", "CAP_NET_RAW"}

// TestEscape makes every attempt of the table in escape_cases_test.go from root
// agents, without and with NET_ADMIN and NET_RAW, under both runtimes. No attempt
// may reach its victim. In the controls, the protection is removed and every
// attempt must reach its victim.
func TestEscape(t *testing.T) {
	leakcheck.Check(t)
	s := newEscapeSuite(t)
	for _, runtimeName := range []string{runtime.RuntimeRunsc, runtime.RuntimeRunc} {
		for _, caps := range [][]string{nil, privileges} {
			t.Run(fmt.Sprintf("%s with %d additional capabilities", runtimeName, len(caps)), func(t *testing.T) {
				in := s.with(t)
				in.expectConfinedTwice(in.launch(runtimeName, caps))
			})
		}
		t.Run(runtimeName+" with additional capabilities and a workspace", func(t *testing.T) {
			in := s.with(t)
			b := in.launchWork(runtimeName, privileges)
			// Its own file is there, so the links are, too.
			own := escape{kind: "open", args: []string{plan.DefaultCwdTarget + "/own", "read", canaryText}}
			if r := in.inside(b.Name, "", []escape{own}); len(r) != 1 || !r[0].Reached {
				t.Errorf("the workspace's own file: %+v", r)
			}
			in.expectConfinedTwice(b)
		})
	}
	t.Run("runsc with additional capabilities, from a prepared bottle", func(t *testing.T) {
		in := s.with(t)
		in.expectConfined(in.claim(runtime.RuntimeRunsc, privileges).Name)
	})
	t.Run("controls", func(t *testing.T) { s.with(t).controls() })
}

// expectConfinedTwice makes every attempt, and again with the routes and addresses that
// the first run added.
func (s *escapeSuite) expectConfinedTwice(b *Bottle) {
	s.t.Helper()
	s.arrivals.listen(s.t, proxyVictim, netns.ProxyPath(s.e.dir(b.Name)))
	s.expectConfined(b.Name)
	s.expectConfined(b.Name)
	s.checkCanary()
}

// with returns the suite for a subtest.
func (s *escapeSuite) with(t *testing.T) *escapeSuite {
	in := *s
	in.t = t
	return &in
}

// expectConfined makes every attempt of the table in bottles concurrently. Each one
// that succeeds is an error.
func (s *escapeSuite) expectConfined(names ...string) {
	s.t.Helper()
	lists := make([][]escape, len(names))
	results := make([][]probeResult, len(names))
	for i, name := range names {
		lists[i] = escapes(s.place(name, false))
	}
	unexpected := s.watch(slices.Concat(lists...))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() { results[i] = s.inside(name, segment.ProxyAddrPort().String(), lists[i]) })
	}
	wg.Wait()
	for i := range names {
		s.checkResults(lists[i], results[i])
	}
	s.expectNone(unexpected())
}

// expectNone reports everything that victims saw.
func (s *escapeSuite) expectNone(arrivals []string) {
	s.t.Helper()
	for _, one := range arrivals {
		s.t.Error(one)
	}
}

// checkResults reports the attempts that succeeded according to the prober, where
// the prober can know.
func (s *escapeSuite) checkResults(list []escape, results []probeResult) {
	s.t.Helper()
	for i, r := range results {
		switch list[i].kind {
		case "spoof", "frame", "flip": // the prober does not see whether they arrive
		default:
			// gVisor has its own settings, which may be changed.
			if r.Reached && list[i].victim != settingVictim && list[i].victim != noVictim {
				s.t.Errorf("%s: succeeded: %s", r.Name, r.Detail)
			}
		}
	}
}

// watch watches all victims. The returned function reports what arrived since,
// except the proxy's own queries and connections for allowed hosts.
func (s *escapeSuite) watch(list []escape) (unexpected func() []string) {
	s.t.Helper()
	world := labtest.World(s.t)
	settings := s.settings()
	victims := []string{hostVictim, proxyVictim, otherVictim, otherAgentVictim}
	before := make([]int, len(victims))
	for i, v := range victims {
		before[i] = s.arrivals.count(v)
	}
	return func() (out []string) {
		s.t.Helper()
		time.Sleep(300 * time.Millisecond) // for packets in flight; there is no event that none will follow
		for i, v := range victims {
			if n := s.arrivals.count(v) - before[i]; n > 0 {
				out = append(out, fmt.Sprintf("victim %q was reached %d times", v, n))
			}
		}
		if now := s.settings(); now != settings {
			out = append(out, fmt.Sprintf("settings changed from %s to %s", settings, now))
		}
		for _, e := range world() {
			leak := !expected(e)
			for _, one := range list {
				leak = leak || matchesVictim(one.victim, e) && !reachedByProxy(one.victim)
			}
			if leak {
				out = append(out, fmt.Sprintf("the world was reached: %+v", e))
			}
		}
		return out
	}
}

// reachedByProxy reports whether a victim of direct attempts is an address that the
// proxy connects to for allowed hosts.
func reachedByProxy(victim string) bool {
	return victim == worldVictim+"198.51.101.10:443" || victim == worldVictim+"198.51.101.53:53"
}

// expected reports whether an event is caused by a proxy's normal operation: a
// query for an allowed name, a connection to an allowed host, or the host's ICMP
// error for a late packet to a proxy that no longer exists.
func expected(e labtest.WorldEvent) bool {
	if isICMPError(e) {
		return true
	}
	if e.Event == "query" {
		return allowedName(strings.TrimSuffix(e.Name, "."))
	}
	host, _, err := net.SplitHostPort(e.Local)
	return err == nil && slices.Contains([]string{"198.51.101.53", "198.51.101.10"}, host)
}

// settings returns the setting that attempts try to change, in the host's network
// namespace and in those of all bottles.
func (s *escapeSuite) settings() string {
	s.t.Helper()
	const file = "/proc/sys/net/ipv4/conf/lo/" + setting
	pins, err := filepath.Glob(filepath.Join(s.e.dir("*"), "*.netns"))
	if err != nil {
		s.t.Fatal(err)
	}
	var out []string
	for _, pin := range append(pins, "/proc/self/ns/net") {
		err := netns.Do(pin, func() error {
			data, err := os.ReadFile(file)
			out = append(out, strings.TrimSpace(string(data)))
			return err
		})
		if err != nil {
			s.t.Fatal(err)
		}
	}
	return strings.Join(out, " ")
}

// allowedName reports whether the manifest allows the name, with or without a port.
func allowedName(name string) bool {
	for line := range strings.Lines(escapeManifest) {
		host, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "- "), ":")
		if host == name {
			return true
		}
	}
	return false
}

// checkCanary checks that bottle did not follow a symbolic link to the canary that
// the image has in place of a file that bottle writes.
func (s *escapeSuite) checkCanary() {
	s.t.Helper()
	data, err := os.ReadFile(canary)
	if err != nil || string(data) != canaryText {
		s.t.Errorf("the host's file was changed to %q, %v", data, err)
	}
}

// controls makes every attempt without its protection. Each must reach its victim.
func (s *escapeSuite) controls() {
	t := s.t
	b := s.launch(runtime.RuntimeRunc, privileges)
	dir := s.e.dir(b.Name)
	s.arrivals.listen(t, proxyVictim, netns.ProxyPath(dir))
	s.removeProtection(b.Name)
	s.removeProtection(s.other.Name)
	opened := serveOpenProxy(t, netns.ProxyPath(dir), "10.77.0.1:8899")
	onHostList, insideList := escapes(s.place(b.Name, true)), escapes(s.place(b.Name, false))
	for i, one := range onHostList {
		if one.control == inOpenBottle {
			one = insideList[i]
		}
		world, before := labtest.World(t), s.arrivals.count(one.victim)
		var r probeResult
		switch one.control {
		case onHost:
			r = s.outside(s.openProxy, one)
		case inNeighbourProxy:
			r = s.outside(s.openProxy, one, "nsenter", "--net="+netns.ProxyPath(s.e.dir(s.other.Name)))
		case inOpenBottle:
			if got := s.inside(b.Name, opened, []escape{one}); len(got) == 1 {
				r = got[0]
			}
		}
		settings := s.settings()
		arrived := func() bool {
			return one.victim == settingVictim && strings.Contains(settings, "1") || one.victim == prober && r.Reached || s.arrivals.count(one.victim) > before ||
				slices.ContainsFunc(world(), func(e labtest.WorldEvent) bool { return matchesVictim(one.victim, e) })
		}
		if !eventually(arrived) {
			t.Errorf("control of %s (%s): the attempt does not reach its victim: %+v", one.name, one.control, r)
		}
	}
	s.write("/proc/sys/net/ipv4/conf/lo/"+setting, "0")
	// The control of the symbolic link: a plain write changes the canary.
	link := t.TempDir() + "/hostname"
	if err := os.Symlink(canary, link); err != nil {
		t.Fatal(err)
	}
	s.write(link, "written")
	if data, _ := os.ReadFile(canary); string(data) != "written" {
		t.Errorf("control of the symbolic link: the canary contains %q", data)
	}
	s.write(canary, canaryText)
}

// eventually waits up to a second for a condition: a victim may report an attempt
// shortly after it was made.
func eventually(fn func() bool) bool {
	for range 50 {
		if fn() {
			return true
		}
		time.Sleep(20 * time.Millisecond)
	}
	return false
}

// removeProtection removes the isolation of a bottle's proxy: its firewall rules,
// those of the host, and the settings against forwarding.
func (s *escapeSuite) removeProtection(name string) {
	s.t.Helper()
	ns := "--net=" + netns.ProxyPath(s.e.dir(name))
	s.command("nsenter", ns, "nft", "flush", "ruleset")
	for _, set := range []string{"ip_forward=1", "conf/all/proxy_arp=1", "conf/internal0/proxy_arp=1", "conf/all/rp_filter=0", "conf/default/rp_filter=0", "conf/internal0/rp_filter=0", "conf/eth0/rp_filter=0"} {
		key, value, _ := strings.Cut(set, "=")
		s.command("nsenter", ns, "sh", "-c", "echo "+value+" >/proc/sys/net/ipv4/"+key)
	}
	s.command("sh", "-c", "nft list table inet bottle >/dev/null 2>&1 && nft delete table inet bottle || true")
	for _, f := range []string{"all", "bottle0"} {
		s.command("sh", "-c", "echo 0 >/proc/sys/net/ipv4/conf/"+f+"/rp_filter")
	}
	s.command("sh", "-c", `for p in /sys/class/net/bottle0/brif/*; do bridge link set dev "${p##*/}" isolated off; done`)
}

// TestEscapeCount checks the table of attempts.
func TestEscapeCount(t *testing.T) {
	p := place{link: "eth0", hostLL: "fe80::1", proxy: "10.210.0.2", other: "10.210.0.3", pid: "1"}
	list := escapes(p)
	if len(list) < minEscapes {
		t.Errorf("%d attempts, want %d", len(list), minEscapes)
	}
	names := map[string]bool{}
	for _, e := range list {
		if names[e.name] {
			t.Errorf("duplicate attempt %s", e.name)
		}
		names[e.name] = true
		if e.victim == "" || e.control == "" || e.kind == "" {
			t.Errorf("%s: missing victim, control or kind: %+v", e.name, e)
		}
	}
	for _, name := range frequentAttempts(p) {
		if !names[name] {
			t.Errorf("unknown frequent attempt %s", name)
		}
	}
	for typ, want := range map[string]bool{"8": true, "3": true, "unreachable": false} {
		e := labtest.WorldEvent{Event: "packet", Proto: "icmp", Type: typ, Local: "198.51.101.66"}
		if got := matchesVictim(worldVictim+e.Local, e); got != want {
			t.Errorf("ICMP message of type %s counts as an arrival: %t, want %t", typ, got, want)
		}
	}
	t.Logf("%d attempts", len(list))
}
