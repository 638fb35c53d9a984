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
	"github.com/bot-bottle/bottle/runtime"
	"github.com/bot-bottle/bottle/session"
)

// requestLoop requests a host from the proxy without pause, also without a proxy, until
// /tmp/stop exists, and then prints the number of each kind of answer.
const requestLoop = `trap '' PIPE
ok=0 no=0 other=0 down=0
while [ ! -e /tmp/stop ]; do
  line=
  { printf 'GET http://%[1]s/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n' >&3; read -r -t 10 line <&3; } 3<>/dev/tcp/10.77.0.1/8888
  case $line in *" 200 "*) ok=$((ok+1));; *" 403 "*) no=$((no+1));; "") down=$((down+1));; *) other=$((other+1)); echo "$line";; esac
done 2>/dev/null
echo "$ok $no $other $down"`

// requester is a session that runs requestLoop.
type requester struct {
	*session.Session
	out bytes.Buffer
}

func startRequests(t *testing.T, e *Engine, name, host string) *requester {
	t.Helper()
	h := &requester{}
	var err error
	h.Session, err = e.Exec(context.WithoutCancel(t.Context()), name, session.Config{
		Command: []string{"bash", "-c", fmt.Sprintf(requestLoop, host)}, Stdout: &h.out, Stderr: &h.out,
	})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// end waits for the loop and returns the number of requests that were allowed, refused,
// and made without a proxy.
func (h *requester) end(t *testing.T) (ok, no, down int) {
	t.Helper()
	var other int
	if code, err := h.Wait(); err != nil || code != 0 {
		t.Errorf("the agent's process: exit code %d, %v", code, err)
	}
	if n, err := fmt.Sscan(h.out.String(), &ok, &no, &other, &down); n != 4 || other > 0 {
		t.Errorf("unexpected output %q, %v", &h.out, err)
	}
	return ok, no, down
}

// requestsFor counts the requests for a host that the test world has received.
func requestsFor(seen []labtest.WorldEvent, host string) (n int) {
	for _, ev := range seen {
		if ev.Event == "request" && ev.Host == host {
			n++
		}
	}
	return n
}

// launchSimple launches the bottle of simpleManifest and removes it after the test.
func launchSimple(t *testing.T, e *Engine) *Bottle {
	t.Helper()
	b, err := e.Launch(t.Context(), prepare(t, e, testSpec(t, simpleManifest)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, b) })
	return b
}

// watch watches a bottle's proxy during the test and reports each restart.
func watch(t *testing.T, e *Engine, name string) (restarted <-chan error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	restarts, ended := make(chan error, 10), make(chan struct{})
	go func() {
		defer close(ended)
		e.proxies.Watch(ctx, name, func(_ []*runtime.LimitError, err error) { restarts <- err })
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return restarts
}

// TestProxyRestarts repeatedly kills the proxy while the agent sends requests to it. The
// agent only loses its egress, List reports it, and the proxy is soon restarted with the
// policy as it was changed at run time. No request that this policy refuses reaches the
// victim at any time.
func TestProxyRestarts(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	start := time.Now()
	b := launchSimple(t, e)
	launched := time.Since(start)
	restarted := watch(t, e, b.Name)
	// The manifest allows what is refused from here on, and refuses what is allowed.
	const victim, served = "allowed.test", "refused.test"
	if _, err := e.proxies.Deny(t.Context(), b.Name, victim); err != nil {
		t.Fatal(err)
	}
	if _, err := e.proxies.Allow(t.Context(), b.Name, served); err != nil {
		t.Fatal(err)
	}
	seen := labtest.World(t)
	refused, allowed := startRequests(t, e, b.Name, victim), startRequests(t, e, b.Name, served)

	passes := func() {
		t.Helper()
		before := requestsFor(seen(), served)
		waitFor(t, "an allowed request", func() bool { return requestsFor(seen(), served) > before })
	}

	const kills = 3
	for i := range kills {
		passes()
		start = time.Now()
		if err := syscall.Kill(proxyPID(t, e, b.Name), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if i > 0 { // a repeatedly exiting proxy is restarted after a delay
			waitFor(t, "the status to report the stopped proxy", func() bool { return onlyStatus(t, e) == "running, proxy is stopped" })
		}
		if err := <-restarted; err != nil {
			t.Errorf("the proxy was not restarted: %v", err)
		}
		took := time.Since(start)
		t.Logf("restarted after %s; the launch took %s", took, launched)
		// Relative to the launch, which takes 0.5 s on an idle machine.
		if i == 0 && took > 4*launched {
			t.Errorf("the restart took %.1f times as long as the launch", float64(took)/float64(launched))
		}
	}
	passes()
	if got := onlyStatus(t, e); got != "running" {
		t.Errorf("status %q", got)
	}
	if out, code := output(t, e, b.Name, "touch", "/tmp/stop"); code != 0 {
		t.Fatal(out)
	}
	ok, no, down := refused.end(t)
	if ok > 0 || no == 0 || down < kills {
		t.Errorf("requests to a refused host: %d allowed, %d refused, %d without a proxy", ok, no, down)
	}
	if n := requestsFor(seen(), victim); n > 0 {
		t.Errorf("the victim received %d requests", n)
	}
	ok, no2, down2 := allowed.end(t)
	if ok == 0 || no2 > 0 || down2 < kills {
		t.Errorf("requests to an allowed host: %d allowed, %d refused, %d without a proxy", ok, no2, down2)
	}
	t.Logf("%d requests refused, %d allowed, %d without a proxy, %d restarts", no, ok, down+down2, kills)

	// The control: the victim receives such a request if it is allowed.
	if _, err := e.proxies.Allow(t.Context(), b.Name, victim); err != nil {
		t.Fatal(err)
	}
	if out, code := output(t, e, b.Name, "curl", "-sS", "-o", "/dev/null", "http://"+victim+"/"); code != 0 {
		t.Error(out)
	}
	if n := requestsFor(seen(), victim); n != 1 {
		t.Errorf("the victim received %d requests of the control, want 1", n)
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

// onlyStatus returns the status of the only bottle.
func onlyStatus(t *testing.T, e *Engine) string {
	t.Helper()
	list, err := e.List(t.Context(), false)
	if err != nil || len(list) != 1 {
		t.Fatalf("List = %+v, %v", list, err)
	}
	return list[0].Status
}

// TestProxyLogKilled kills the process that writes the egress log: no request is answered
// without being logged. The proxy exits too, and is restarted with a new log process.
func TestProxyLogKilled(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	b := launchSimple(t, e)
	restarted := watch(t, e, b.Name)
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
		t.Errorf("a request was answered without being logged: %s", out)
	}
	if err := <-restarted; err != nil {
		t.Fatal(err)
	}
	if out, code := ask("after"); out != "403" {
		t.Errorf("after the restart: exit %d: %s", code, out)
	}
	var urls []string
	for entry, err := range e.proxies.Log(t.Context(), b.Name, time.Time{}, false) {
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

// logPID returns the process that writes a log.
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
	t.Fatalf("no process writes %s", file)
	return 0
}

// TestProxyStaysDown verifies that a bottle being removed gets no new proxy, and that
// without a proxy its status reports that and the agent reaches nothing.
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
		t.Errorf("List = %+v, %v", list, err)
	}
	if out, code := output(t, e, b.Name, "curl", "-sS", "-m", "2", "https://allowed.test/"); code == 0 {
		t.Errorf("answered without a proxy: %s", out)
	}
	// A policy changed now is in force from the next start on.
	if _, err := e.proxies.Deny(t.Context(), b.Name, "allowed.test"); err != nil {
		t.Error(err)
	}
	if err := e.proxies.MarkRemoving(t.Context(), b.Name); err != nil {
		t.Fatal(err)
	}
	e.proxies.Watch(t.Context(), b.Name, func(_ []*runtime.LimitError, err error) { t.Errorf("restarted: %v", err) })
	if err := os.Remove(filepath.Join(e.dir(b.Name), "removing")); err != nil {
		t.Fatal(err)
	}
	if started, _, err := e.proxies.Restart(t.Context(), b.Name); !started || err != nil {
		t.Fatal(started, err)
	}
	if started, _, err := e.proxies.Restart(t.Context(), b.Name); started || err != nil {
		t.Errorf("a running proxy was restarted: %v, %v", started, err)
	}
	if out, code := output(t, e, b.Name, "curl", "-sS", "-m", "5", "https://allowed.test/"); code == 0 || !strings.Contains(out, "403") {
		t.Errorf("denied while the proxy was down: exit %d: %s", code, out)
	}
	if _, err := os.Lstat(netns.ProxyPath(e.dir(b.Name))); err != nil {
		t.Error(err)
	}
}
