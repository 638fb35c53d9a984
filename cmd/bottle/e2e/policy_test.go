package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// TestAllowDeny changes the policy of a running bottle, and its manifest.
func TestAllowDeny(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	l := u.start("claude-bottle-policy")
	fetch := func() int {
		return u.exec(l.name, "curl", "-sS", "-m", "10", "-o", "/dev/null", "https://refused.test/").code
	}
	if code := fetch(); code == 0 {
		t.Fatal("the control: it was reached before it was allowed")
	}
	began := time.Now()
	if r := u.bottle("allow", "policy", "refused.test", "--save"); r.code != 0 || !strings.Contains(r.stderr, "can now reach refused.test") {
		t.Fatalf("exit %d\n%s", r.code, r.stderr)
	}
	t.Logf("allow took %s", time.Since(began))
	if code := fetch(); code != 0 {
		t.Errorf("allowed, and curl ends with %d", code)
	}
	saved, err := os.ReadFile(filepath.Join(u.dir, "bottle.yaml"))
	if want := strings.Replace(manifest, `"*.wild.test"]`, `"*.wild.test", refused.test]`, 1); err != nil || string(saved) != want {
		t.Errorf("the manifest, %v:\n%s", err, saved)
	}
	if r := u.bottle("deny", "policy", "refused.test"); r.code != 0 {
		t.Fatalf("exit %d\n%s", r.code, r.stderr)
	}
	if code := fetch(); code == 0 {
		t.Error("denied, and reached all the same")
	}
	// An exception below a wildcard; the control is a sibling.
	if r := u.bottle("deny", "policy", "sub.wild.test"); r.code != 0 {
		t.Errorf("a host that *.wild.test covers: exit %d\n%s", r.code, r.stderr)
	}
	connect := func(host string) string {
		return u.exec(l.name, "bash", "-c", `exec 3<>/dev/tcp/10.77.0.1/8888; printf 'CONNECT `+host+`:443 HTTP/1.1\r\nHost: x\r\n\r\n' >&3; head -n 1 <&3`).stdout
	}
	if out := connect("sub.wild.test"); !strings.Contains(out, "403") {
		t.Errorf("a denied host below a wildcard: %q", out)
	}
	if out := connect("wild.test"); !strings.Contains(out, "200") {
		t.Errorf("its sibling: %q", out)
	}
	if r := u.bottle("allow", "policy", "sub.wild.test"); r.code != 0 {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
	if r := u.bottle("allow", "policy", "127.0.0.1:8080"); r.code != 125 || !strings.Contains(r.stderr, "cannot be reached: a loopback address") || !strings.Contains(r.stderr, "without the proxy") {
		t.Errorf("an address of the sandbox itself: exit %d\n%s", r.code, r.stderr)
	}
	if r := u.bottle("allow", "policy", "https://refused.test/"); r.code != 125 || !strings.Contains(r.stderr, "expected a host, not a URL") {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
	if r := u.bottle("run", "sh", "--proxy", "builtin", "--learn", "--yes"); r.code != 125 || !strings.Contains(r.stderr, "--learn allows every public host") {
		t.Errorf("--learn without anybody: exit %d\n%s", r.code, r.stderr)
	}
	l.end()
	if r := u.bottle("allow", "sh", "later.test"); r.code != 125 || !strings.Contains(r.stderr, "no such bottle: sh") {
		t.Errorf("no bottle runs and nothing is to be saved: exit %d\n%s", r.code, r.stderr)
	}
	if r := u.bottle("allow", "nobody", "later.test", "--save"); r.code != 125 || !strings.Contains(r.stderr, "no such bottle: nobody") {
		t.Errorf("neither a bottle nor an agent: exit %d\n%s", r.code, r.stderr)
	}
	// The command that run prints at its end: the agent's bottle no longer runs.
	if r := u.bottle("allow", "sh", "later.test", "--save"); r.code != 0 {
		t.Errorf("for the next run: exit %d\n%s", r.code, r.stderr)
	}
	saved, err = os.ReadFile(filepath.Join(u.dir, "bottle.yaml"))
	if want := strings.Replace(manifest, `"*.wild.test"]`, `"*.wild.test", refused.test, later.test]`, 1); err != nil || string(saved) != want {
		t.Errorf("the manifest, %v:\n%s", err, saved)
	}
	if r := u.bottle("deny", "sh", "later.test", "--save"); r.code != 0 {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
}

// TestProxyKilled kills the proxy during a session: the session continues, the agent
// has egress again once list shows no problem, and the restart is reported.
func TestProxyKilled(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	l := u.start("claude-bottle-killed")
	first := proxyPID(t, l.name)
	if first == 0 {
		t.Fatal("there is no proxy")
	}
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// Each session restarts it: `bottle run` must do so before another session starts.
	awaitNewProxy(t, l.name, first)
	limit := time.Now().Add(longest) // it may not listen yet
	for u.exec(l.name, "curl", "-sS", "-m", "10", "-o", "/dev/null", "https://allowed.test/").code != 0 {
		if time.Now().After(limit) {
			t.Fatal("egress does not come back")
		}
	}
	if r := u.exec(l.name, "curl", "-sS", "-m", "10", "https://refused.test/"); r.code == 0 {
		t.Errorf("a refused host is reached: %+v", r)
	}
	if r := u.bottle("list"); !strings.Contains(r.stdout, l.name) || strings.Contains(r.stdout, "proxy is") {
		t.Errorf("list says\n%s%s", r.stdout, r.stderr)
	}
	if code := l.end(); code != 0 {
		t.Errorf("exit %d", code)
	}
	if !strings.Contains(l.errs.String(), "The egress proxy of "+l.name+" ended and was restarted") {
		t.Errorf("standard error:\n%s", l.errs)
	}
}

// proxyPID is the proxy's own process of a bottle; 0 if there is none.
func proxyPID(t *testing.T, name string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		groups, _ := os.ReadFile(file) // it may have ended
		line, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
		if strings.Contains(string(groups), name+".proxy\n") && strings.Contains(string(line), "\x00proxy\x00") {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	return 0
}
