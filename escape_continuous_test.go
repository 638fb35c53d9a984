package bottle

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/segment"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/session"
)

// While the suite breaks something, probers repeat attempts continuously. They keep
// their results in a file, because output would be lost with containerd.

const (
	// Intervals of repeated attempts.
	frequentInterval = 150 * time.Millisecond
	normalInterval   = 3 * time.Second
	// minRounds is how many times each frequent attempt must be made before a fault
	// and after it.
	minRounds = 3
	// roundsTimeout bounds the wait for these rounds, on a very busy machine.
	roundsTimeout = 40 * time.Second
)

func (e escape) interval() time.Duration {
	if e.frequent {
		return frequentInterval
	}
	return normalInterval
}

// frequentAttempts are the names of attempts that are made frequently.
func frequentAttempts(p place) []string {
	return []string{
		"udp 192.0.2.2:7777", "udp 10.210.0.1:7777", "udp 10.77.0.1:7777", "udp " + p.other + ":7777", "udp 198.51.101.66:9999",
		"udp 169.254.169.254:9999", "tcp 192.0.2.2:7777", "tcp 10.77.0.1:7777", "broadcast frame to the proxy",
		"source address of another bottle", "CONNECT 198.51.101.66:443", "CONNECT 10.99.0.10:443", "CONNECT 169.254.169.254:80",
		"CONNECT 192.0.2.2:7777", `CONNECT "refused.test:443"`, `CONNECT "private.test:443"`, "GET of a refused host", "SNI of another host",
	}
}

// continuousAttempts are the attempts that an agent repeats: all of the table that
// can be repeated. The only route that is added is a default route, so that packets
// reach the proxy's namespace if the agent may add it. An allowed request shows
// that the agent has network access at all.
func continuousAttempts(p place) []escape {
	frequent := frequentAttempts(p)
	out := []escape{{
		name: allowedRequest, kind: "raw", args: []string{"GET http://allowed.test/ HTTP/1.1\r\nHost: allowed.test\r\n\r\n"},
		victim: noVictim, frequent: true,
	}}
	for _, e := range escapes(p) {
		switch {
		case e.kind == "route" && e.args[0] != "0.0.0.0/0", e.kind == "address", e.kind == "mount":
			continue
		case e.kind == "spoof":
			e.exclusive = false
		}
		e.frequent = slices.Contains(frequent, e.name)
		out = append(out, e)
	}
	return out
}

const allowedRequest = "an allowed request"

// proxyNamespaceAttempts are attempts from the proxy's network namespace, as if the
// agent had got there. Either the host's rules or those of the namespace must be
// enough to stop them.
func proxyNamespaceAttempts() []escape {
	var out []escape
	add := func(victim string, to ...string) {
		for _, to := range to {
			for _, kind := range []string{"tcp", "udp"} {
				e := escape{name: kind + " from the proxy to " + to, kind: kind, args: []string{to}, victim: victim, frequent: true}
				if victim != hostVictim {
					e.victim += to
				}
				out = append(out, e)
			}
		}
	}
	add(hostVictim, "192.0.2.2:7777", "10.210.0.1:7777")
	add(worldVictim, "192.0.2.1:80", "10.99.0.10:443", "169.254.169.254:80", "192.168.99.10:22")
	return out
}

// continuousProber is a prober that repeats attempts.
type continuousProber struct {
	where string
	list  []escape
	// read returns the results file or, with a suffix, one of the files next to it.
	read func(suffix string) ([]byte, error)
	stop func() error
	// lost is set if the agent ended with containerd, and the prober with it.
	lost bool
}

// probeInside starts a continuous prober in a bottle.
func (s *escapeSuite) probeInside(name string) *continuousProber {
	s.t.Helper()
	p := &continuousProber{where: name, list: continuousAttempts(s.place(name, false))}
	file := fmt.Sprintf("/tmp/escape-results-%d", time.Now().UnixNano())
	p.read = func(suffix string) ([]byte, error) { return s.probeIn(name, nil, "cat", file+suffix) }
	p.stop = func() error { _, err := s.probeIn(name, nil, "stop", file); return err }
	if _, err := s.probeIn(name, batchOf(p.list, segment.ProxyAddrPort().String(), file)); err != nil {
		s.t.Fatal(err)
	}
	return p
}

// probeProxyNamespace starts a continuous prober in the network namespace of a
// bottle's proxy.
func (s *escapeSuite) probeProxyNamespace(name string) *continuousProber {
	s.t.Helper()
	p := &continuousProber{where: "the proxy's namespace of " + name, list: proxyNamespaceAttempts()}
	file := filepath.Join(s.t.TempDir(), "results")
	p.read = func(suffix string) ([]byte, error) { return os.ReadFile(file + suffix) }
	p.stop = func() error { return os.WriteFile(file+".stop", nil, 0o600) }
	cmd := exec.Command("nsenter", "--net="+netns.ProxyPath(s.e.dir(name)), s.probe)
	cmd.Stdin = bytes.NewReader(batchOf(p.list, "", file))
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("start the prober in %s: %v: %s", p.where, err, out)
	}
	return p
}

func (p *continuousProber) results() ([]probeResult, error) {
	data, err := p.read("")
	if err != nil {
		return nil, err
	}
	return readResults(data, len(p.list))
}

// awaitRounds waits until every frequent attempt was made minRounds more times.
func (p *continuousProber) awaitRounds(t *testing.T) error {
	var first, last []probeResult
	var err error
	for end := time.Now().Add(roundsTimeout); !p.lost; time.Sleep(100 * time.Millisecond) {
		last, err = p.results()
		switch {
		case errors.Is(err, session.ErrNotRunning):
			p.lost = true
			t.Logf("the prober in %s ended with its agent: %v", p.where, err)
			return nil
		case err != nil:
		case first == nil:
			first = last
		case p.enoughRounds(first, last):
			return nil
		}
		if time.Now().After(end) {
			return errors.Join(err, fmt.Errorf("the prober in %s is too slow: before: %s; now: %s", p.where, describePace(p.list, first), describePace(p.list, last)))
		}
	}
	return nil
}

func (p *continuousProber) enoughRounds(first, last []probeResult) bool {
	for i := range last {
		if p.list[i].frequent && last[i].Rounds < first[i].Rounds+minRounds {
			return false
		}
	}
	return true
}

// end stops the prober and returns its results, or none if it was lost.
func (p *continuousProber) end() ([]probeResult, error) {
	if p.lost {
		return nil, nil
	}
	if err := p.stop(); err != nil {
		return nil, fmt.Errorf("stop the prober in %s: %w", p.where, err)
	}
	for end := time.Now().Add(roundsTimeout); ; time.Sleep(50 * time.Millisecond) {
		done, err := p.read(".done")
		if len(done) > 0 {
			return nil, fmt.Errorf("the prober in %s: %s", p.where, done)
		}
		if err == nil {
			return p.results()
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("the prober in %s does not stop: %w", p.where, err)
		}
	}
}

// observation holds what probers tried during a fault and what victims saw.
type observation struct {
	probers []*continuousProber
	results [][]probeResult
	arrived []string
}

// each calls do for all probers concurrently.
func (o *observation) each(do func(i int, p *continuousProber) error) error {
	errs := make([]error, len(o.probers))
	var wg sync.WaitGroup
	for i, p := range o.probers {
		wg.Go(func() { errs[i] = do(i, p) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// probeWhile runs continuous probers in bottles and in their proxies' namespaces
// before, during and after a fault. The fault may call awaitRounds to wait for more
// attempts.
func (s *escapeSuite) probeWhile(names []string, fault func(o *observation, awaitRounds func())) *observation {
	s.t.Helper()
	o := &observation{}
	var lists []escape
	for _, name := range names {
		lists = append(lists, continuousAttempts(s.place(name, false))...)
	}
	unexpected := s.watch(append(lists, proxyNamespaceAttempts()...))
	for _, name := range names {
		o.probers = append(o.probers, s.probeInside(name), s.probeProxyNamespace(name))
	}
	awaitRounds := func() {
		s.t.Helper()
		if err := o.each(func(_ int, p *continuousProber) error { return p.awaitRounds(s.t) }); err != nil {
			s.t.Fatal(err)
		}
	}
	awaitRounds()
	fault(o, awaitRounds)
	awaitRounds()
	o.results = make([][]probeResult, len(o.probers))
	err := o.each(func(i int, p *continuousProber) (err error) {
		o.results[i], err = p.end()
		return err
	})
	if err != nil {
		s.t.Error(err)
	}
	o.arrived = unexpected()
	return o
}

// expectConfinedDuring repeats attempts during a fault. None may succeed, except the
// allowed request, which must have succeeded before the fault.
func (s *escapeSuite) expectConfinedDuring(what string, names []string, fault func()) {
	s.t.Helper()
	o := s.probeWhile(names, func(*observation, func()) { fault() })
	for i, p := range o.probers {
		s.checkResults(p.list, o.results[i])
		s.t.Logf("during %s, from %s: %s", what, p.where, describePace(p.list, o.results[i]))
		for j, r := range o.results[i] {
			if p.list[j].name == allowedRequest && !r.Reached {
				s.t.Errorf("during %s, from %s: even the allowed request failed, so the test shows nothing: %s", what, p.where, r.Detail)
			}
		}
	}
	s.expectNone(o.arrived)
}

// describePace describes how often attempts were made.
func describePace(list []escape, results []probeResult) string {
	frequent, rounds, gap := 0, 0, int64(0)
	for i, r := range results {
		rounds += r.Rounds
		if list[i].frequent {
			frequent, gap = frequent+1, max(gap, r.Gap)
		}
	}
	return fmt.Sprintf("%d attempts of %d kinds, %d of them frequent with gaps of at most %d ms", rounds, len(results), frequent, gap)
}
