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

	"github.com/bot-bottle/bottle/internal/segment"
	"github.com/bot-bottle/bottle/proxy"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/runtime"
)

// TestEscapeAfterFaults has agents that are root, without and with NET_ADMIN and
// NET_RAW, under both runtimes, and processes in their proxies' own namespaces, try
// without a pause while something breaks: the host's firewall is flushed, and then
// reloaded, the proxies are killed, containerd is restarted. After each the whole
// table is tried again by all. No victim may see anything at any time. What mends
// a bottle meanwhile is what `bottle run` has do it. The control is a wall that is
// taken away for a moment: what was tried without a pause sees that.
func TestEscapeAfterFaults(t *testing.T) {
	leakcheck.Check(t)
	s := newScenery(t)
	var names []string
	for _, k := range agentKinds {
		names = append(names, s.launchWatched(k))
	}
	s.during("another bottle's coming and going", names, func() {
		remove(t, s.launch(runtime.RuntimeRunc, nil))
		s.changePolicy(names[0])
	})
	s.during("a flush of the firewall", names, func() { s.command("nft", "flush", "ruleset") })
	if s.hasTable() {
		t.Fatal("the host's rules are still there, so that this shows nothing")
	}
	s.confined(names...)

	stop := s.keepAll(names)
	defer func() { stop() }()
	s.mended("a flush of the firewall", names)
	s.during("a reload of the firewall", names, func() {
		s.command("nft", "flush ruleset; add table ip fw; add chain ip fw forward { type filter hook forward priority 0; policy drop; }")
	})
	s.mended("a reload of the firewall", names)
	s.confined(names...)
	s.command("nft", "delete", "table", "ip", "fw")

	s.during("the proxies' end", names, func() {
		for _, name := range names {
			s.killProxy(name)
		}
		s.mended("the proxies' end", names)
	})
	s.confined(names...)

	s.during("containerd's restart", names, func() { s.command("scripts/lab.d/restart-containerd.sh") })
	// runsc's shim may not outlive it, and a bottle whose agent is gone leaves
	// nothing to try from.
	for i, k := range agentKinds {
		if err := s.exec(names[i]); err != nil {
			t.Logf("the agent has ended with containerd: %v", err)
			names[i] = s.launchWatched(k)
		}
	}
	stop()
	stop = s.keepAll(names)
	s.mended("containerd's restart", names)
	s.confined(names...)

	stop()
	stop = func() {}
	for i, k := range agentKinds {
		if len(k.caps) > 0 {
			t.Run("a window under "+k.runtime, func(t *testing.T) { s.with(t).window(names[i]) })
		}
	}
}

// agentKind is a kind of agent.
type agentKind struct {
	runtime string
	caps    []string // more than it would have
}

var agentKinds = []agentKind{
	{runtime.RuntimeRunsc, nil}, {runtime.RuntimeRunsc, privileges}, {runtime.RuntimeRunc, nil}, {runtime.RuntimeRunc, privileges},
}

// launchWatched launches a bottle with a victim in its proxy's namespace, and
// returns its name.
func (s *scenery) launchWatched(k agentKind) string {
	s.t.Helper()
	b := s.launch(k.runtime, k.caps)
	s.seen.victim(s.t, proxyVictim, netns.ProxyPath(s.e.dir(b.Name)))
	return b.Name
}

// changePolicy has a bottle's packet filter and proxy be told of something new.
func (s *scenery) changePolicy(name string) {
	s.t.Helper()
	for _, change := range []func(context.Context, string, string) (proxy.PolicyChange, error){s.e.Allow, s.e.Deny} {
		if _, err := change(s.t.Context(), name, "new.test:8443"); err != nil {
			s.t.Error(err)
		}
	}
}

// keepAll does what `bottle run` does for its bottle while it runs.
func (s *scenery) keepAll(names []string) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.t.Context()))
	stopRules := s.e.KeepRules(ctx)
	var watching sync.WaitGroup
	for _, name := range names {
		watching.Go(func() {
			s.e.WatchProxy(ctx, name, func(err error) { s.t.Logf("the proxy of %s was started again: %v", name, err) })
		})
	}
	return sync.OnceFunc(func() {
		cancel()
		stopRules()
		watching.Wait()
	})
}

func (s *scenery) hasTable() bool {
	s.t.Helper()
	return strings.Contains(s.command("nft", "list", "tables"), "inet bottle")
}

// mended waits until the host's rules are there and both agents reach what they
// may.
func (s *scenery) mended(what string, names []string) {
	s.t.Helper()
	reaches := func(name string) bool {
		list := vigilEscapes(s.place(name, false))[:1]
		out, err := s.probeIn(name, batchOf(list, segment.ProxyAddrPort().String(), ""))
		if err != nil {
			return false
		}
		r, err := readResults(out, 1)
		return err == nil && r[0].Reached
	}
	for end := time.Now().Add(vigilPatience); !s.hasTable() || slices.ContainsFunc(names, func(n string) bool { return !reaches(n) }); {
		if time.Now().After(end) {
			s.t.Fatalf("after %s nobody mends what is allowed", what)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (s *scenery) killProxy(name string) {
	s.t.Helper()
	all, err := s.e.rt.List(s.t.Context(), name)
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
	s.t.Fatal(fmt.Errorf("%s has no proxy that runs", name))
}

// putBack writes the rules of a proxy's namespace again.
func (s *scenery) putBack(name string) {
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

// window takes the walls of a bottle away. In the time of a few attempts of each
// kind every victim of what is tried often has to have seen it: so a vigil would have
// seen such a window in a fault.
func (s *scenery) window(name string) {
	s.t.Helper()
	world := labtest.World(s.t)
	before := map[string]int{}
	for _, victim := range []string{hostVictim, proxyVictim} {
		before[victim] = s.seen.count(victim)
	}
	seen := func(one escape) bool {
		return s.seen.count(one.victim) > before[one.victim] || slices.ContainsFunc(world(), func(e labtest.WorldEvent) bool { return seenBy(one.victim, e) })
	}
	var open time.Duration
	w := s.keepVigil([]string{name}, func(w *watched, goOn func()) {
		began := time.Now()
		s.killProxy(name)
		s.takeDown(name)
		// So that there is a way back.
		s.command("nft", "add table ip opened; add chain ip opened post { type nat hook postrouting priority 100; }; add rule ip opened post ip saddr 10.0.0.0/8 masquerade")
		serveNaive(s.t, netns.ProxyPath(s.e.dir(name)), segment.ProxyAddrPort().String())
		goOn()
		open = time.Since(began)
		for _, v := range w.vigils {
			for _, one := range v.list {
				// The other bottle's proxy has a wall of its own, which stands.
				if one.often && one.victim != nobody && one.victim != otherVictim && !soon(func() bool { return seen(one) }) {
					s.t.Errorf("%s from %s does not see a window of %v, so that it shows nothing", one.name, v.where, open)
				}
			}
		}
	})
	// Not before all have ended: what is cut comes back to the host for minutes,
	// whose complaints the world would see.
	s.command("nft", "delete table ip opened")
	s.putBack(name)
	for i, v := range w.vigils {
		s.t.Logf("a window of %v, from %s: %s", open, v.where, pauses(v.list, w.results[i]))
	}
	if len(w.seen) == 0 {
		s.t.Error("the victims that are watched in faults saw nothing of the window")
	}
}
