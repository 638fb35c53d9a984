package bottle

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/egress"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/netns"
)

// hammer asks the proxy for a host without a pause, whether there is a proxy or
// not, until /tmp/stop is there, and then says what it was answered.
const hammer = `trap '' PIPE
ok=0 no=0 other=0 down=0
while [ ! -e /tmp/stop ]; do
  line=
  { printf 'GET http://%[1]s/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n' >&3; read -r -t 10 line <&3; } 3<>/dev/tcp/10.77.0.1/8888
  case $line in *" 200 "*) ok=$((ok+1));; *" 403 "*) no=$((no+1));; "") down=$((down+1));; *) other=$((other+1)); echo "$line";; esac
done 2>/dev/null
echo "$ok $no $other $down"`

// hammering is a session with a hammer in it.
type hammering struct {
	*Session
	out bytes.Buffer
}

func startHammer(t *testing.T, e *Engine, name, host string) *hammering {
	t.Helper()
	h := &hammering{}
	var err error
	h.Session, err = e.Exec(context.WithoutCancel(t.Context()), name, SessionConfig{
		Command: []string{"bash", "-c", fmt.Sprintf(hammer, host)}, Stdout: &h.out, Stderr: &h.out,
	})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// end gives how often it was let through, refused, and met no proxy.
func (h *hammering) end(t *testing.T) (ok, no, down int) {
	t.Helper()
	var other int
	if code, err := h.Wait(); err != nil || code != 0 {
		t.Errorf("the agent's own process ended with %d, %v", code, err)
	}
	if n, err := fmt.Sscan(h.out.String(), &ok, &no, &other, &down); n != 4 || other > 0 {
		t.Errorf("the hammer says %q, %v", &h.out, err)
	}
	return ok, no, down
}

// requestsFor counts those for a host in what the world has seen.
func requestsFor(seen []labtest.WorldEvent, host string) (n int) {
	for _, ev := range seen {
		if ev.Event == "request" && ev.Host == host {
			n++
		}
	}
	return n
}

// launchSimple launches the bottle of simpleManifest; it is removed at the test's end.
func launchSimple(t *testing.T, e *Engine) *Bottle {
	t.Helper()
	b, err := e.Launch(t.Context(), prepare(t, e, testSpec(t, simpleManifest)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, b) })
	return b
}

// watch watches a bottle's proxy until the test's end, and tells of each restart.
func watch(t *testing.T, e *Engine, name string) (told <-chan error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	restarts, ended := make(chan error, 10), make(chan struct{})
	go func() {
		defer close(ended)
		e.WatchProxy(ctx, name, func(err error) { restarts <- err })
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return restarts
}

// TestProxyRestarts kills the proxy, again and again, while the agent hammers at
// it: the agent loses its way out and nothing else, list says so, it has it again
// soon, under the policy as it was changed while the proxy ran, and
// of what that refuses not one request reaches the victim before, between or after.
func TestProxyRestarts(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	began := time.Now()
	b := launchSimple(t, e)
	launched := time.Since(began)
	told := watch(t, e, b.Name)
	// From here on the manifest would let through what is refused, and refuse what
	// is let through.
	const victim, served = "allowed.test", "refused.test"
	if _, err := e.Deny(t.Context(), b.Name, victim); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Allow(t.Context(), b.Name, served); err != nil {
		t.Fatal(err)
	}
	seen := labtest.World(t)
	bad, good := startHammer(t, e, b.Name, victim), startHammer(t, e, b.Name, served)

	passes := func() {
		t.Helper()
		before := requestsFor(seen(), served)
		waitFor(t, "a request that is let through", func() bool { return requestsFor(seen(), served) > before })
	}

	const kills = 3
	for i := range kills {
		passes()
		began = time.Now()
		if err := syscall.Kill(proxyPID(t, e, b.Name), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if i > 0 { // it waits a little before it starts a proxy that keeps ending
			waitFor(t, "list to say that the proxy is gone", func() bool { return statusOfOnly(t, e) == "running, proxy is stopped" })
		}
		if err := <-told; err != nil {
			t.Errorf("the proxy was not started again: %v", err)
		}
		took := time.Since(began)
		t.Logf("started again after %s; the launch took %s", took, launched)
		// Two seconds are four launches on a machine that has nothing else to do.
		if i == 0 && took > 4*launched {
			t.Errorf("that took %.1f times as long as the launch", float64(took)/float64(launched))
		}
	}
	passes()
	if got := statusOfOnly(t, e); got != "running" {
		t.Errorf("list says %q", got)
	}
	if out, code := output(t, e, b.Name, "touch", "/tmp/stop"); code != 0 {
		t.Fatal(out)
	}
	ok, no, down := bad.end(t)
	if ok > 0 || no == 0 || down < kills {
		t.Errorf("what is refused was let through %d times and refused %d times; there was no proxy %d times", ok, no, down)
	}
	if n := requestsFor(seen(), victim); n > 0 {
		t.Errorf("the victim saw %d requests", n)
	}
	ok, no2, down2 := good.end(t)
	if ok == 0 || no2 > 0 || down2 < kills {
		t.Errorf("what is allowed was let through %d times and refused %d times; there was no proxy %d times", ok, no2, down2)
	}
	t.Logf("%d requests refused, %d let through, %d without a proxy, %d restarts", no, ok, down+down2, kills)

	// The control: such a request, let through, is seen by the victim.
	if _, err := e.Allow(t.Context(), b.Name, victim); err != nil {
		t.Fatal(err)
	}
	if out, code := output(t, e, b.Name, "curl", "-sS", "-o", "/dev/null", "http://"+victim+"/"); code != 0 {
		t.Error(out)
	}
	if n := requestsFor(seen(), victim); n != 1 {
		t.Errorf("the victim saw %d requests of the control", n)
	}
}

func waitFor(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for limit := time.Now().Add(30 * time.Second); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("waiting for %s", what)
		}
	}
}

// statusOfOnly is what list says of the one bottle.
func statusOfOnly(t *testing.T, e *Engine) string {
	t.Helper()
	list, err := e.List(t.Context(), false)
	if err != nil || len(list) != 1 {
		t.Fatalf("list says %+v, %v", list, err)
	}
	return list[0].Status
}

// TestProxyLogKilled ends the process that writes the egress log: nothing happens
// that it would not have told. The proxy ends with it, and comes back with a log.
func TestProxyLogKilled(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	b := launchSimple(t, e)
	told := watch(t, e, b.Name)
	ask := func(path string) (string, int) {
		return output(t, e, b.Name, "curl", "-sS", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}", "http://refused.test/"+path)
	}
	if out, code := ask("before"); out != "403" {
		t.Fatalf("exit %d: %s", code, out)
	}
	if err := syscall.Kill(logPID(t, e.proxies.LogFile(b.Name)), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if out, code := ask("meanwhile"); code == 0 {
		t.Errorf("a request that nobody could log was answered: %s", out)
	}
	if err := <-told; err != nil {
		t.Fatal(err)
	}
	if out, code := ask("after"); out != "403" {
		t.Errorf("after the restart: exit %d: %s", code, out)
	}
	var urls []string
	for entry, err := range e.EgressLog(t.Context(), b.Name, time.Time{}, false) {
		if err != nil {
			t.Fatal(err)
		}
		if entry.Verdict() == egress.VerdictRefused {
			urls = append(urls, entry.URL)
		}
	}
	if want := []string{"http://refused.test/before", "http://refused.test/after"}; !slices.Equal(urls, want) {
		t.Errorf("logged %q, want %q", urls, want)
	}
}

// logPID is the process that writes a log.
func logPID(t *testing.T, file string) int {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines {
		text, _ := os.ReadFile(line) // it may have ended
		if strings.HasSuffix(string(text), "\x00proxy-log\x00"+file+"\x00") {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(line)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatalf("nobody writes %s", file)
	return 0
}

// TestProxyStaysDown: a bottle that is being removed gets no new proxy, and one
// whose proxy is down says so and stays shut.
func TestProxyStaysDown(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	b := launchSimple(t, e)
	if err := syscall.Kill(proxyPID(t, e, b.Name), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := e.rt.WaitTask(t.Context(), names.Proxy(b.Name)); err != nil {
		t.Fatal(err)
	}
	list, err := e.List(t.Context(), false)
	if err != nil || len(list) != 1 || list[0].Status != "running, proxy is stopped" {
		t.Errorf("list says %+v, %v", list, err)
	}
	if out, code := output(t, e, b.Name, "curl", "-sS", "-m", "2", "https://allowed.test/"); code == 0 {
		t.Errorf("something answered without a proxy: %s", out)
	}
	// A policy that is changed now holds from the next start on.
	if _, err := e.Deny(t.Context(), b.Name, "allowed.test"); err != nil {
		t.Error(err)
	}
	if err := e.proxies.MarkRemoving(t.Context(), b.Name); err != nil {
		t.Fatal(err)
	}
	e.WatchProxy(t.Context(), b.Name, func(err error) { t.Errorf("started again: %v", err) })
	if err := os.Remove(filepath.Join(e.dir(b.Name), "removing")); err != nil {
		t.Fatal(err)
	}
	if done, err := e.proxies.Restart(t.Context(), b.Name); !done || err != nil {
		t.Fatal(done, err)
	}
	if done, err := e.proxies.Restart(t.Context(), b.Name); done || err != nil {
		t.Errorf("a proxy that runs was started again: %v, %v", done, err)
	}
	if out, code := output(t, e, b.Name, "curl", "-sS", "-m", "5", "https://allowed.test/"); code == 0 || !strings.Contains(out, "403") {
		t.Errorf("what was denied while the proxy was down: %d %s", code, out)
	}
	if _, err := os.Lstat(netns.ProxyPath(e.dir(b.Name))); err != nil {
		t.Error(err)
	}
}
