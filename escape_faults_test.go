package bottle

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/internal/segment"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/proxy"
	"github.com/bot-bottle/bottle/runtime"
)

// TestEscapeAfterFaults repeats attempts during faults: the host's firewall is
// flushed, then reloaded, the proxies are killed, and containerd is restarted. The
// attempts are made from root agents, without and with NET_ADMIN and NET_RAW, under
// both runtimes, and from their proxies' namespaces. After each fault, the complete
// table is tried again. No attempt may reach its victim at any time. The bottles are
// repaired by the same functions that `bottle run` uses. In the control, the
// protection is removed for a short time, and the repeated attempts must succeed.
func TestEscapeAfterFaults(t *testing.T) {
	leakcheck.Check(t)
	s := newEscapeSuite(t)
	var names []string
	for _, k := range agentKinds {
		names = append(names, s.launchWithVictim(k))
	}
	s.expectConfinedDuring("the launch and removal of another bottle", names, func() {
		remove(t, s.launch(runtime.RuntimeRunc, nil))
		s.changePolicy(names[0])
	})
	s.expectConfinedDuring("a flush of the firewall", names, func() { s.command("nft", "flush", "ruleset") })
	if s.hasTable() {
		t.Fatal("the host's rules were not flushed, so the test shows nothing")
	}
	s.expectConfined(names...)

	stop := s.watchAll(names)
	defer func() { stop() }()
	s.waitRestored("a flush of the firewall", names)
	s.expectConfinedDuring("a reload of the firewall", names, func() {
		s.command("nft", "flush ruleset; add table ip fw; add chain ip fw forward { type filter hook forward priority 0; policy drop; }")
	})
	s.waitRestored("a reload of the firewall", names)
	s.expectConfined(names...)
	s.command("nft", "delete", "table", "ip", "fw")

	s.expectConfinedDuring("the restart of the proxies", names, func() {
		for _, name := range names {
			s.killProxy(name)
		}
		s.waitRestored("the restart of the proxies", names)
	})
	s.expectConfined(names...)

	s.expectConfinedDuring("a restart of containerd", names, func() { s.command("scripts/lab.d/restart-containerd.sh") })
	// runsc's shim may end with containerd, and its agent with it. Then another bottle
	// takes its place.
	for i, k := range agentKinds {
		if err := s.exec(names[i]); err != nil {
			t.Logf("the agent ended with containerd: %v", err)
			names[i] = s.launchWithVictim(k)
		}
	}
	stop()
	stop = s.watchAll(names)
	s.waitRestored("a restart of containerd", names)
	s.expectConfined(names...)

	stop()
	stop = func() {}
	for i, k := range agentKinds {
		if len(k.caps) > 0 {
			t.Run("control under "+k.runtime, func(t *testing.T) { s.with(t).faultControl(names[i]) })
		}
	}
}

// agentKind is a kind of agent.
type agentKind struct {
	runtime string
	caps    []string // additional capabilities
}

var agentKinds = []agentKind{
	{runtime.RuntimeRunsc, nil}, {runtime.RuntimeRunsc, privileges}, {runtime.RuntimeRunc, nil}, {runtime.RuntimeRunc, privileges},
}

// launchWithVictim launches a bottle with a victim in its proxy's namespace and
// returns its name.
func (s *escapeSuite) launchWithVictim(k agentKind) string {
	s.t.Helper()
	b := s.launch(k.runtime, k.caps)
	s.arrivals.listen(s.t, proxyVictim, netns.ProxyPath(s.e.dir(b.Name)))
	return b.Name
}

// changePolicy changes the policy of a running bottle.
func (s *escapeSuite) changePolicy(name string) {
	s.t.Helper()
	for _, change := range []func(context.Context, string, string) (proxy.PolicyChange, error){s.e.proxies.Allow, s.e.proxies.Deny} {
		if _, err := change(s.t.Context(), name, "new.test:8443"); err != nil {
			s.t.Error(err)
		}
	}
}

// watchAll watches rules and proxies as `bottle run` does.
func (s *escapeSuite) watchAll(names []string) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.t.Context()))
	stopRules := s.e.WatchRules(ctx)
	var watching sync.WaitGroup
	for _, name := range names {
		watching.Go(func() {
			s.e.proxies.Watch(ctx, name, func(_ []*runtime.LimitError, err error) { s.t.Logf("restarted the proxy of %s: %v", name, err) })
		})
	}
	return sync.OnceFunc(func() {
		cancel()
		stopRules()
		watching.Wait()
	})
}

func (s *escapeSuite) hasTable() bool {
	s.t.Helper()
	return strings.Contains(s.command("nft", "list", "tables"), "inet bottle")
}

// waitRestored waits until the host's rules exist and all agents reach an allowed
// host.
func (s *escapeSuite) waitRestored(what string, names []string) {
	s.t.Helper()
	reaches := func(name string) bool {
		list := continuousAttempts(s.place(name, false))[:1]
		out, err := s.probeIn(name, batchOf(list, segment.ProxyAddrPort().String(), ""))
		if err != nil {
			return false
		}
		r, err := readResults(out, 1)
		return err == nil && r[0].Reached
	}
	for end := time.Now().Add(roundsTimeout); !s.hasTable() || slices.ContainsFunc(names, func(n string) bool { return !reaches(n) }); {
		if time.Now().After(end) {
			s.t.Fatalf("allowed traffic was not restored after %s", what)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (s *escapeSuite) killProxy(name string) {
	s.t.Helper()
	all, err := s.e.rt.List(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, c := range all {
		if c.ID == name+runtime.ProxySuffix && c.PID > 0 {
			if err := syscall.Kill(int(c.PID), syscall.SIGKILL); err != nil {
				s.t.Fatal(err)
			}
			return
		}
	}
	s.t.Fatal(fmt.Errorf("%s has no running proxy", name))
}

// restoreRules restores the rules of a proxy's namespace.
func (s *escapeSuite) restoreRules(name string) {
	s.t.Helper()
	state, err := s.e.proxies.Load(name)
	if err != nil {
		s.t.Fatal(err)
	}
	d, err := state.Destinations()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.e.net.SetDestinations(s.t.Context(), s.e.dir(name), d); err != nil {
		s.t.Fatal(err)
	}
}

// faultControl removes the protection of a bottle for the time of a few rounds. All
// frequent attempts must reach their victims, so they would have done so during a
// fault that leaves a bottle unprotected for as long.
func (s *escapeSuite) faultControl(name string) {
	s.t.Helper()
	world := labtest.World(s.t)
	before := map[string]int{}
	for _, victim := range []string{hostVictim, proxyVictim} {
		before[victim] = s.arrivals.count(victim)
	}
	arrived := func(one escape) bool {
		return s.arrivals.count(one.victim) > before[one.victim] || slices.ContainsFunc(world(), func(e labtest.WorldEvent) bool { return matchesVictim(one.victim, e) })
	}
	var unprotected time.Duration
	o := s.probeWhile([]string{name}, func(o *observation, awaitRounds func()) {
		start := time.Now()
		s.killProxy(name)
		s.removeProtection(name)
		// Masquerading makes replies possible.
		s.command("nft", "add table ip opened; add chain ip opened post { type nat hook postrouting priority 100; }; add rule ip opened post ip saddr 10.0.0.0/8 masquerade")
		serveOpenProxy(s.t, netns.ProxyPath(s.e.dir(name)), segment.ProxyAddrPort().String())
		awaitRounds()
		unprotected = time.Since(start)
		for _, p := range o.probers {
			for _, one := range p.list {
				// The other bottle's proxy is still protected.
				if one.frequent && one.victim != noVictim && one.victim != otherVictim && !eventually(func() bool { return arrived(one) }) {
					s.t.Errorf("control of %s, from %s, unprotected for %v: the attempt does not reach its victim", one.name, p.where, unprotected)
				}
			}
		}
	})
	// Only after the probers have stopped: otherwise late packets of cut connections
	// make the host send ICMP errors for minutes, which the world would report.
	s.command("nft", "delete table ip opened")
	s.restoreRules(name)
	for i, p := range o.probers {
		s.t.Logf("unprotected for %v, from %s: %s", unprotected, p.where, describePace(p.list, o.results[i]))
	}
	if len(o.arrived) == 0 {
		s.t.Error("control: the suite reports no arrivals in an unprotected bottle")
	}
}
