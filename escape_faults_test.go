package bottle

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/runtime"
	"github.com/bot-bottle/bottle/scripts/leakcheck"
)

// faultTime is how long attempts go on around a fault.
const faultTime = 4 * time.Second

// TestEscapeAfterFaults has an agent with NET_ADMIN and NET_RAW, and a process
// in its proxy's own namespace, try without a pause while something breaks: the
// host's firewall is flushed, containerd restarted, the proxy killed. Then the
// whole table is tried again. No victim may see anything at any time.
func TestEscapeAfterFaults(t *testing.T) {
	leakcheck.Check(t)
	s := newScenery(t)
	for _, runtimeName := range []string{runtime.RuntimeRunsc, runtime.RuntimeRunc} {
		t.Run(runtimeName, func(t *testing.T) {
			s := s.with(t)
			b := s.launch(runtimeName, privileges)
			s.seen.victim(t, proxyVictim, netns.ProxyPath(s.e.dir(b.Name)))
			s.during("the firewall's reload", b.Name, func() { s.command("nft", "flush", "ruleset") })
			if got := s.command("nft", "list", "tables"); strings.Contains(got, "bottle") {
				t.Fatalf("the host's rules are still there, so that this shows nothing: %s", got)
			}
			s.confined(b.Name)
			if err := s.e.net.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := s.command("nft", "list", "tables"); !strings.Contains(got, "inet bottle") {
				t.Errorf("Refresh did not write bottle's table: %s", got)
			}
			s.during("the proxy's end", b.Name, func() { s.killProxy(b.Name) })
			s.confined(b.Name)
			s.during("containerd's restart", b.Name, func() { s.command("scripts/lab.d/restart-containerd.sh") })
			// runsc's shim may not outlive it, and a bottle whose agent is gone
			// leaves nothing to try from.
			if _, err := s.e.Exec(t.Context(), b.Name, SessionConfig{Command: []string{"/probe", "chatter", "0"}, Stdout: io.Discard, Stderr: io.Discard}); err != nil {
				t.Logf("the agent has ended with containerd: %v", err)
				b = s.launch(runtimeName, privileges)
			}
			s.confined(b.Name)
		})
	}
	t.Run("controls", func(t *testing.T) {
		s := s.with(t)
		ns := "--net=" + netns.ProxyPath(s.e.dir(s.other.Name))
		s.takeDown(s.other.Name)
		for _, one := range fromProxy() {
			if r := s.outside(s.naive, one, "nsenter", ns); one.victim == hostVictim && !r.Reached {
				t.Errorf("%s does not succeed without the wall, so that it shows nothing: %+v", one.name, r)
			}
		}
	})
}

// fromProxy are attempts from the proxy's own namespace, as if it were the
// agent's already: of the host's walls and the namespace's, one must be enough.
func fromProxy() []escape {
	var out []escape
	for _, to := range []string{"192.0.2.2:7777", "10.210.0.1:7777"} {
		out = append(out, escape{name: "from the proxy to " + to, kind: "tcp", args: []string{to}, victim: hostVictim, control: besideNeighbour})
	}
	for _, to := range []string{"192.0.2.1:80", "10.99.0.10:443", "169.254.169.254:80", "192.168.99.10:22"} {
		out = append(out, escape{name: "from the proxy to " + to, kind: "tcp", args: []string{to}, victim: worldVictim + to, control: besideNeighbour})
	}
	return out
}

// during keeps trying from the agent and from the proxy's namespace while fault
// happens. A session's end is lost with containerd, so that the victims alone
// are asked.
func (s *scenery) during(what, name string, fault func()) {
	s.t.Helper()
	var list []escape
	for _, one := range escapes(s.place(name, false)) {
		if !one.alone && one.kind != "mount" {
			list = append(list, one)
		}
	}
	ends := s.watch(append(list, fromProxy()...))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.t.Context()), 3*faultTime)
	defer cancel()
	inside := make(chan error, 1)
	go func() {
		session, err := s.e.Exec(ctx, name, SessionConfig{
			Command: []string{"/probe"}, Stdin: bytes.NewReader(batchOf(list, proxyListen, faultTime)), Stdout: io.Discard, Stderr: io.Discard,
		})
		if err == nil {
			_, err = session.Wait()
		}
		inside <- err
	}()
	var out bytes.Buffer
	beside := exec.CommandContext(ctx, "nsenter", "--net="+netns.ProxyPath(s.e.dir(name)), s.probe)
	beside.Stdin, beside.Stdout, beside.Stderr = bytes.NewReader(batchOf(fromProxy(), "", faultTime)), &out, os.Stderr
	if err := beside.Start(); err != nil {
		s.t.Fatal(err)
	}
	time.Sleep(faultTime / 4) // attempts before the fault, and after it
	fault()
	if err := beside.Wait(); err != nil {
		s.t.Errorf("during %s, the prober in the proxy's namespace: %v", what, err)
	} else {
		results := s.results(out.Bytes(), len(fromProxy()))
		s.judge(fromProxy(), results)
		if results[0].Rounds < 2 {
			s.t.Errorf("during %s there was no more than one attempt: %+v", what, results[0])
		}
	}
	if err := <-inside; err != nil {
		s.t.Logf("during %s, the prober in the bottle: %v", what, err)
	}
	ends()
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
