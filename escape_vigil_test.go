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
)

// A vigil is attempts that go on without a pause while something breaks. Its
// prober tells in a file how they fare, as its output would be lost with
// containerd.

// How often the attempts of a vigil are made.
const (
	oftenPace = 150 * time.Millisecond
	otherPace = 3 * time.Second
	// vigilRounds is how often each of those that are made often has to have
	// been made before a fault, and after it.
	vigilRounds = 3
	// vigilPatience bounds the wait for that, on the busiest of machines.
	vigilPatience = 40 * time.Second
)

func (e escape) pace() time.Duration {
	if e.often {
		return oftenPace
	}
	return otherPace
}

// vigilEscapes are what an agent tries in a vigil: all of the table that can be
// repeated. A default route comes first, so that what it sends comes as far as
// its proxy's namespace, if it may. One request is allowed: it shows that the
// agent's way out is there.
func vigilEscapes(p place) []escape {
	often := []string{
		"udp 192.0.2.2:7777", "udp 10.210.0.1:7777", "udp 10.77.0.1:7777", "udp " + p.other + ":7777", "udp 198.51.101.66:9999",
		"udp 169.254.169.254:9999", "tcp 192.0.2.2:7777", "tcp 10.77.0.1:7777", "frame to the proxy", "source of another bottle",
		"CONNECT 198.51.101.66:443", "CONNECT 10.99.0.10:443", "CONNECT 169.254.169.254:80", "CONNECT 192.0.2.2:7777",
		`CONNECT "refused.test:443"`, `CONNECT "private.test:443"`, "GET of a refused host", "SNI of another host",
	}
	out := []escape{{
		name: allowedRequest, kind: "raw", args: []string{"GET http://allowed.test/ HTTP/1.1\r\nHost: allowed.test\r\n\r\n"},
		victim: nobody, often: true,
	}}
	for _, e := range escapes(p) {
		switch {
		case e.kind == "route" && e.args[0] != "0.0.0.0/0", e.kind == "address", e.kind == "mount":
			continue
		case e.kind == "spoof":
			e.alone = false
		}
		e.often = slices.Contains(often, e.name)
		out = append(out, e)
	}
	return out
}

const allowedRequest = "an allowed request"

// vigilFromProxy are attempts from the proxy's own namespace, as if it were the
// agent's already: of the host's walls and the namespace's, one must be enough.
func vigilFromProxy() []escape {
	var out []escape
	add := func(victim string, to ...string) {
		for _, to := range to {
			for _, kind := range []string{"tcp", "udp"} {
				e := escape{name: kind + " from the proxy to " + to, kind: kind, args: []string{to}, victim: victim, often: true}
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

// vigil is one prober at work.
type vigil struct {
	where string
	list  []escape
	// read reads a file of the vigil's, by what is behind its name.
	read func(suffix string) ([]byte, error)
	stop func() error
	// lost: the agent has ended with containerd, and its prober with it.
	lost bool
}

// vigilInside begins one in a bottle.
func (s *scenery) vigilInside(name string) *vigil {
	s.t.Helper()
	v := &vigil{where: name, list: vigilEscapes(s.place(name, false))}
	file := fmt.Sprintf("/tmp/vigil-%d", time.Now().UnixNano())
	v.read = func(suffix string) ([]byte, error) { return s.probeIn(name, nil, "cat", file+suffix) }
	v.stop = func() error { _, err := s.probeIn(name, nil, "stop", file); return err }
	if _, err := s.probeIn(name, batchOf(v.list, segment.ProxyAddrPort().String(), file)); err != nil {
		s.t.Fatal(err)
	}
	return v
}

// vigilBeside begins one in the namespace of a bottle's proxy.
func (s *scenery) vigilBeside(name string) *vigil {
	s.t.Helper()
	v := &vigil{where: "the proxy's namespace of " + name, list: vigilFromProxy()}
	file := filepath.Join(s.t.TempDir(), "vigil")
	v.read = func(suffix string) ([]byte, error) { return os.ReadFile(file + suffix) }
	v.stop = func() error { return os.WriteFile(file+".stop", nil, 0o600) }
	cmd := exec.Command("nsenter", "--net="+netns.ProxyPath(s.e.dir(name)), s.probe)
	cmd.Stdin = bytes.NewReader(batchOf(v.list, "", file))
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("the prober in %s: %v: %s", v.where, err, out)
	}
	return v
}

// fares is how the attempts fare.
func (v *vigil) fares() ([]probeResult, error) {
	data, err := v.read("")
	if err != nil {
		return nil, err
	}
	return readResults(data, len(v.list))
}

// await waits until each of those attempts that are made often was made a few
// times more.
func (v *vigil) await(t *testing.T) error {
	var first, last []probeResult
	var err error
	for end := time.Now().Add(vigilPatience); !v.lost; time.Sleep(100 * time.Millisecond) {
		last, err = v.fares()
		switch {
		case errors.Is(err, ErrNotRunning):
			v.lost = true
			t.Logf("the prober in %s has ended with its agent: %v", v.where, err)
			return nil
		case err != nil:
		case first == nil:
			first = last
		case v.roundsMore(first, last):
			return nil
		}
		if time.Now().After(end) {
			return errors.Join(err, fmt.Errorf("the prober in %s does not come round, from %s to %s", v.where, pauses(v.list, first), pauses(v.list, last)))
		}
	}
	return nil
}

func (v *vigil) roundsMore(first, last []probeResult) bool {
	for i := range last {
		if v.list[i].often && last[i].Rounds < first[i].Rounds+vigilRounds {
			return false
		}
	}
	return true
}

// end returns what the prober found, or nothing if it was lost.
func (v *vigil) end() ([]probeResult, error) {
	if v.lost {
		return nil, nil
	}
	if err := v.stop(); err != nil {
		return nil, fmt.Errorf("end the prober in %s: %w", v.where, err)
	}
	for end := time.Now().Add(vigilPatience); ; time.Sleep(50 * time.Millisecond) {
		done, err := v.read(".done")
		if len(done) > 0 {
			return nil, fmt.Errorf("the prober in %s: %s", v.where, done)
		}
		if err == nil {
			return v.fares()
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("the prober in %s does not end: %w", v.where, err)
		}
	}
}

// watched is what was tried while something happened, and what victims saw.
type watched struct {
	vigils  []*vigil
	results [][]probeResult
	seen    []string
}

// each does something for all vigils at the same time.
func (w *watched) each(do func(i int, v *vigil) error) error {
	errs := make([]error, len(w.vigils))
	var wg sync.WaitGroup
	for i, v := range w.vigils {
		wg.Go(func() { errs[i] = do(i, v) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// keepVigil has vigils kept in bottles and beside their proxies: before fault,
// while it happens, and after it. Fault may have them go on for a while.
func (s *scenery) keepVigil(names []string, fault func(w *watched, goOn func())) *watched {
	s.t.Helper()
	w := &watched{}
	var lists []escape
	for _, name := range names {
		lists = append(lists, vigilEscapes(s.place(name, false))...)
	}
	ends := s.watch(append(lists, vigilFromProxy()...))
	for _, name := range names {
		w.vigils = append(w.vigils, s.vigilInside(name), s.vigilBeside(name))
	}
	goOn := func() {
		s.t.Helper()
		if err := w.each(func(_ int, v *vigil) error { return v.await(s.t) }); err != nil {
			s.t.Fatal(err)
		}
	}
	goOn()
	fault(w, goOn)
	goOn()
	w.results = make([][]probeResult, len(w.vigils))
	err := w.each(func(i int, v *vigil) (err error) {
		w.results[i], err = v.end()
		return err
	})
	if err != nil {
		s.t.Error(err)
	}
	w.seen = ends()
	return w
}

// during keeps vigils while a fault happens, in which nothing may get through.
// What is allowed has to have come through before it.
func (s *scenery) during(what string, names []string, fault func()) {
	s.t.Helper()
	w := s.keepVigil(names, func(*watched, func()) { fault() })
	for i, v := range w.vigils {
		s.judge(v.list, w.results[i])
		s.t.Logf("during %s, from %s: %s", what, v.where, pauses(v.list, w.results[i]))
		for j, r := range w.results[i] {
			if v.list[j].name == allowedRequest && !r.Reached {
				s.t.Errorf("during %s the agent of %s reaches nothing at all, so that this shows nothing: %s", what, v.where, r.Detail)
			}
		}
	}
	s.none(w.seen)
}

// pauses tells how close the attempts were that are made often.
func pauses(list []escape, results []probeResult) string {
	n, all, longest := 0, 0, int64(0)
	for i, r := range results {
		all += r.Rounds
		if list[i].often {
			n, longest = n+1, max(longest, r.Gap)
		}
	}
	return fmt.Sprintf("%d attempts of %d kinds, %d kinds often, with %d ms at the most from one to the next", all, len(results), n, longest)
}
