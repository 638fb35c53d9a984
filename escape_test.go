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
	"github.com/bot-bottle/bottle/runtime"
)

// fewestEscapes is how many attempts the suite must have.
const fewestEscapes = 60

// privileges are those that a test-only spec adds.
var privileges = []string{"CAP_NET_ADMIN", "CAP_NET_RAW"}

// TestEscape has agents that are root, without and with NET_ADMIN and NET_RAW,
// under both runtimes, try every way out of the table in escape_cases_test.go.
// Nothing may arrive at a victim. Then a bottle's walls are taken away, and
// every attempt of the table must arrive.
func TestEscape(t *testing.T) {
	leakcheck.Check(t)
	s := newScenery(t)
	for _, runtimeName := range []string{runtime.RuntimeRunsc, runtime.RuntimeRunc} {
		for _, caps := range [][]string{nil, privileges} {
			t.Run(fmt.Sprintf("%s with %d more capabilities", runtimeName, len(caps)), func(t *testing.T) {
				in := s.with(t)
				b := in.launch(runtimeName, caps)
				in.seen.victim(t, proxyVictim, netns.ProxyPath(in.e.dir(b.Name)))
				in.confined(b.Name)
				// Again, with the routes and addresses that it gave itself.
				in.confined(b.Name)
				in.canaryStands()
			})
		}
	}
	t.Run("controls", func(t *testing.T) { s.with(t).controls() })
}

// with is the same scenery for a subtest.
func (s *scenery) with(t *testing.T) *scenery {
	in := *s
	in.t = t
	return &in
}

// confined runs the whole table in bottles, in all at the same time, and fails
// for all that succeeds.
func (s *scenery) confined(names ...string) {
	s.t.Helper()
	lists := make([][]escape, len(names))
	results := make([][]probeResult, len(names))
	for i, name := range names {
		lists[i] = escapes(s.place(name, false))
	}
	ends := s.watch(slices.Concat(lists...))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() { results[i] = s.inside(name, segment.ProxyAddrPort().String(), lists[i]) })
	}
	wg.Wait()
	for i := range names {
		s.judge(lists[i], results[i])
	}
	s.none(ends())
}

// none fails for everything that victims saw.
func (s *scenery) none(sightings []string) {
	s.t.Helper()
	for _, one := range sightings {
		s.t.Error(one)
	}
}

// judge takes the prober's word where it can know.
func (s *scenery) judge(list []escape, results []probeResult) {
	s.t.Helper()
	for i, r := range results {
		switch list[i].kind {
		case "spoof", "frame", "flip": // sent is not arrived
		default:
			// gVisor has settings of its own, which may be written.
			if r.Reached && list[i].victim != settingVictim && list[i].victim != nobody {
				s.t.Errorf("%s: got through: %s", r.Name, r.Detail)
			}
		}
	}
}

// watch begins to watch all victims, and its end tells what they saw: nothing,
// but for what the proxy asks and fetches for what is allowed.
func (s *scenery) watch(list []escape) (ends func() []string) {
	s.t.Helper()
	world := labtest.World(s.t)
	settings := s.settings()
	victims := []string{hostVictim, proxyVictim, otherVictim, otherInside}
	before := make([]int, len(victims))
	for i, v := range victims {
		before[i] = s.seen.count(v)
	}
	return func() (out []string) {
		s.t.Helper()
		time.Sleep(300 * time.Millisecond) // for what is under way to arrive; nothing tells that nothing comes
		for i, v := range victims {
			if n := s.seen.count(v) - before[i]; n > 0 {
				out = append(out, fmt.Sprintf("the victim %q was reached %d times", v, n))
			}
		}
		if now := s.settings(); now != settings {
			out = append(out, fmt.Sprintf("settings were %s and are %s", settings, now))
		}
		for _, e := range world() {
			leak := !expected(e)
			for _, one := range list {
				leak = leak || seenBy(one.victim, e) && !expectedAt(one.victim)
			}
			if leak {
				out = append(out, fmt.Sprintf("the world was reached: %+v", e))
			}
		}
		return out
	}
}

// expectedAt holds for the one address that is a victim of direct attempts and
// is reached by the proxy all the same.
func expectedAt(victim string) bool {
	return victim == worldVictim+"198.51.101.10:443" || victim == worldVictim+"198.51.101.53:53"
}

// expected holds for what a proxy does for an agent: questions for allowed
// names, and connections to allowed hosts; and for what the host says to the late
// answers of such a host, when the proxy that they are for has gone.
func expected(e labtest.WorldEvent) bool {
	if isComplaint(e) {
		return true
	}
	if e.Event == "query" {
		return allowedName(strings.TrimSuffix(e.Name, "."))
	}
	host, _, err := net.SplitHostPort(e.Local)
	return err == nil && slices.Contains([]string{"198.51.101.53", "198.51.101.10"}, host)
}

// settings reads the setting that attempts aim at: the host's, and those of the
// other bottle's namespaces and of all that are pinned beside them.
func (s *scenery) settings() string {
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

// allowedName tells whether the manifest has a line for the name, with or without
// a port.
func allowedName(name string) bool {
	for line := range strings.Lines(escapeManifest) {
		host, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "- "), ":")
		if host == name {
			return true
		}
	}
	return false
}

// canaryStands: the image has a symbolic link to the canary where bottle writes
// a file of its own.
func (s *scenery) canaryStands() {
	s.t.Helper()
	data, err := os.ReadFile(canary)
	if err != nil || string(data) != canaryText {
		s.t.Errorf("the host's file holds %q, %v", data, err)
	}
}

// controls runs every attempt where its wall was taken away: each must be seen
// by its victim.
func (s *scenery) controls() {
	t := s.t
	b := s.launch(runtime.RuntimeRunc, privileges)
	dir := s.e.dir(b.Name)
	s.seen.victim(t, proxyVictim, netns.ProxyPath(dir))
	s.takeDown(b.Name)
	s.takeDown(s.other.Name)
	opened := serveNaive(t, netns.ProxyPath(dir), "10.77.0.1:8899")
	onHostList, insideList := escapes(s.place(b.Name, true)), escapes(s.place(b.Name, false))
	for i, one := range onHostList {
		if one.control == inOpened {
			one = insideList[i]
		}
		world, before := labtest.World(t), s.seen.count(one.victim)
		var r probeResult
		switch one.control {
		case onHost:
			r = s.outside(s.naive, one)
		case besideNeighbour:
			r = s.outside(s.naive, one, "nsenter", "--net="+netns.ProxyPath(s.e.dir(s.other.Name)))
		case inOpened:
			if got := s.inside(b.Name, opened, []escape{one}); len(got) == 1 {
				r = got[0]
			}
		}
		settings := s.settings()
		arrived := func() bool {
			return one.victim == settingVictim && strings.Contains(settings, "1") || one.victim == prober && r.Reached || s.seen.count(one.victim) > before ||
				slices.ContainsFunc(world(), func(e labtest.WorldEvent) bool { return seenBy(one.victim, e) })
		}
		if !soon(arrived) {
			t.Errorf("%s does not succeed even without the wall (%s), so that it shows nothing: %+v", one.name, one.control, r)
		}
	}
	s.write("/proc/sys/net/ipv4/conf/lo/"+setting, "0")
	// The symbolic link's control: who writes without looking hits the canary.
	link := t.TempDir() + "/hostname"
	if err := os.Symlink(canary, link); err != nil {
		t.Fatal(err)
	}
	s.write(link, "written")
	if data, _ := os.ReadFile(canary); string(data) != "written" {
		t.Errorf("the symbolic link leads nowhere: %q", data)
	}
	s.write(canary, canaryText)
}

// soon waits for a sighting, which comes a moment after the attempt.
func soon(fn func() bool) bool {
	for range 50 {
		if fn() {
			return true
		}
		time.Sleep(20 * time.Millisecond)
	}
	return false
}

// takeDown removes what keeps a bottle's proxy apart: its rules, the host's, and
// the settings against forwarding.
func (s *scenery) takeDown(name string) {
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

// TestEscapeCount holds the suite to what it is meant to have.
func TestEscapeCount(t *testing.T) {
	list := escapes(place{link: "eth0", hostLL: "fe80::1", proxy: "10.210.0.2", other: "10.210.0.3", pid: "1"})
	if len(list) < fewestEscapes {
		t.Errorf("%d attempts, want %d", len(list), fewestEscapes)
	}
	names := map[string]bool{}
	for _, e := range list {
		if names[e.name] {
			t.Errorf("%s is there twice", e.name)
		}
		names[e.name] = true
		if e.victim == "" || e.control == "" || e.kind == "" {
			t.Errorf("%s has no victim, control or kind: %+v", e.name, e)
		}
	}
	for typ, want := range map[string]bool{"8": true, "3": true, "unreachable": false} {
		e := labtest.WorldEvent{Event: "packet", Proto: "icmp", Type: typ, Local: "198.51.101.66"}
		if got := seenBy(worldVictim+e.Local, e); got != want {
			t.Errorf("an ICMP message of type %s is a sighting: %t", typ, got)
		}
	}
	t.Logf("%d attempts", len(list))
}
