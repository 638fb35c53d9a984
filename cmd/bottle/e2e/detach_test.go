package e2e

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// detached starts an agent in the background.
func (u user) detached(name string, args ...string) string {
	u.t.Helper()
	name = "claude-bottle-" + name
	u.bottle(append([]string{"run", "sh", "-d", "--proxy", "builtin", "--yes", "--name", name}, args...)...).want(u.t, 0, name+"\n")
	return name
}

// fullScreen draws a screen with every mode that is to be restored, redraws its size when
// that changes, and ends with the code that it reads.
const fullScreen = `trap 'printf "\033[5;1Hsize %s." "$(stty size)"' WINCH
stty -echo; printf '\033[?1049h\033[?25l\033[?1000h\033[?2004h\033[2;3Hdrawn once\033[5;1Hready'
while ! read -r line; do :; done; exit "$line"`

const restored = "\x1b[?25h\x1b[?1000l\x1b[?2004l\x1b[?1049l"

// TestDetach leaves and rejoins a session: by keys, by the loss of the terminal, and after
// the client and every other process of bottle on the host was killed and containerd was
// restarted. The screen is drawn again each time, the modes of the terminal are restored,
// and the exit code is that of the agent.
func TestDetach(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t).with("TERM=xterm-256color")
	name := u.detached("away", "--", "-c", fullScreen)
	rejoin := func(width, height uint16) *terminal {
		x := u.onTerminal(width, height, "attach", "away")
		seen := x.until("drawn once") + x.until("\x1b[?2004h")
		for _, want := range []string{"\x1b[?1049h", "\x1b[2;1H  drawn once", "\x1b[?25l", "\x1b[?1000h"} {
			if !strings.Contains(seen, want) {
				t.Errorf("no %q in\n%q", want, seen)
			}
		}
		return x
	}
	x := rejoin(100, 30)
	x.until("size 30 100.")
	x.types("\x10\x11")
	if seen := x.until("Detached: " + name + " continues."); !strings.Contains(seen, restored) {
		t.Errorf("the modes are not restored:\n%q", seen)
	}
	if code := x.wait(); code != 0 {
		t.Errorf("detached: exit %d", code)
	}
	x = rejoin(101, 31)
	if err := x.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	x.until(restored)
	if code := x.wait(); code != 0 {
		t.Errorf("SIGHUP: exit %d", code)
	}
	x = rejoin(102, 32)
	if err := x.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	u.killWatcher(name)
	_ = x.cmd.Wait()
	if out, err := exec.Command("../../../scripts/lab.d/restart-containerd.sh").CombinedOutput(); err != nil {
		t.Fatalf("restart containerd: %v\n%s", err, out)
	}
	x = rejoin(103, 33)
	x.until("size 33 103.")
	// Two clients see the same; the last size counts.
	y := rejoin(90, 20)
	x.until("size 20 90.")
	y.until("size 20 90.")
	if err := x.near.Resize(console.WinSize{Width: 110, Height: 40}); err != nil {
		t.Fatal(err)
	}
	y.until("size 40 110.")
	x.until("size 40 110.")
	y.types("7\r")
	for _, z := range []*terminal{x, y} {
		z.until(restored)
		if code := z.wait(); code != 7 {
			t.Errorf("exit %d", code)
		}
	}
	u.bottle("wait", "away").want(t, 0, "7\n")
	r := u.bottle("attach", "away")
	if r.code != 125 || !strings.Contains(r.stderr, "has ended with exit code 7\nhint: bottle logs "+name) {
		t.Errorf("attach after the end: exit %d\n%s", r.code, r.stderr)
	}
	// The watcher is dead: wait has stopped the sandbox.
	u.bottle("list", "-a", "--format", "{{.Status}}").want(t, 0, "stopped, exit code 7\n")
	u.bottle("rm", "away").want(t, 0, name+"\n")
}

// TestDetachedWithoutHelper kills the helper: the session continues, its output and exit
// code stay, and stop stores them.
func TestDetachedWithoutHelper(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	name := u.detached("alone", "-T", "--", "-c", `echo out; echo err >&2; while ! test -e /tmp/go; do sleep 0.1; done; for i in 1 2 3; do echo "line $i"; done; while ! test -e /tmp/end; do sleep 0.1; done; exit 3`)
	u.killWatcher(name)
	// Standard output and error are two pipes: their order is known only once both are read.
	within(t, func() bool { r := u.bottle("logs", name); return r.stdout == "out\n" && r.stderr == "err\n" })
	u.exec(name, "touch", "/tmp/go").want(t, 0, "")
	u.exec(name, "touch", "/tmp/end").want(t, 0, "")
	u.bottle("wait", name).want(t, 0, "3\n")
	r := u.bottle("logs", name)
	if r.stdout != "out\nline 1\nline 2\nline 3\n" || r.stderr != "err\n" {
		t.Errorf("logs: %q, %q", r.stdout, r.stderr)
	}
	u.bottle("logs", "-n", "2", name).want(t, 0, "line 2\nline 3\n")
	u.bottle("logs", "--since", "2030-01-01T00:00:00Z", name).want(t, 0, "")
	u.bottle("stop", name).want(t, 0, name+"\n")
	u.bottle("list", "-a", "--format", "{{.Status}}").want(t, 0, "stopped, exit code 3\n")
	u.bottle("logs", "-n", "1", name).want(t, 0, "line 3\n")
	u.bottle("wait", name).want(t, 0, "3\n")
	u.bottle("rm", name).want(t, 0, name+"\n")
}

// TestUnwatchedLimit exceeds the memory limit of a bottle whose watcher was killed: the
// next command reports the limit.
func TestUnwatchedLimit(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	u.write("bottle.yaml", `version: 1
bottles:
  dev: {image: "bottle-demo:latest", limits: {memory: 128MiB}}
agents:
  sh: {bottle: dev, command: [sh]}
`)
	unwatched := func(rt string) string {
		name := u.detached("hog", "-T", "--runtime", rt, "--", "-c", "while ! test -e /tmp/go; do sleep 0.1; done; exec tail /dev/zero")
		u.killWatcher(name)
		u.exec(name, "touch", "/tmp/go") // the sandbox may end before it answers
		return name
	}
	const limit = "limit of memory reached"
	for _, command := range [][]string{{"list", "-a", "--format", "{{.Status}}"}, {"wait", "hog"}, {"attach", "hog"}, {"logs", "hog"}} {
		name := unwatched("runsc")
		within(t, func() bool { return u.bottle("list", "-q").stdout == "" })
		switch r := u.bottle(command...); command[0] {
		case "wait":
			r.want(t, 0, "137\n")
		case "logs":
			oneLine(t, r, "the sandbox was killed, and the output is lost")
		case "attach":
			oneLine(t, r, "has ended: killed, "+limit, "raise limits.memory in the manifest")
		}
		u.bottle("list", "-a", "--format", "{{.Status}}").want(t, 0, "stopped, killed, "+limit+"\n")
		u.bottle("rm", name).want(t, 0, name+"\n")
	}
	// Under runc only the agent is killed.
	name := unwatched("runc")
	u.bottle("wait", name).want(t, 0, "137\n")
	oneLine(t, u.bottle("attach", name), "has ended: exit code 137, "+limit, "raise limits.memory in the manifest")
	u.bottle("list", "-a", "--format", "{{.Status}}").want(t, 0, "stopped, exit code 137, "+limit+"\n")
	u.bottle("rm", name).want(t, 0, name+"\n")
}

// TestUnwatchedProxy kills the proxy of a bottle whose watcher was killed: the agent lives,
// and reaches nothing until a command with a session is running.
func TestUnwatchedProxy(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	name := u.detached("dark", "-T", "--", "-c", `until test -e /tmp/end; do curl -s -m 5 -o /dev/null -w '%{http_code}\n' http://allowed.test/; sleep 0.1; done; exit 3`)
	last := func() string { return u.bottle("logs", "-n", "1", name).stdout }
	within(t, func() bool { return last() == "200\n" })
	u.killWatcher(name)
	if err := syscall.Kill(proxyPID(t, name), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	within(t, func() bool { return last() == "000\n" })
	if r := u.bottle("list"); !strings.Contains(r.stdout, "proxy is stopped") {
		t.Errorf("list:\n%s%s", r.stdout, r.stderr)
	}
	r := u.exec(name, "sh", "-c", "until curl -sf -m 5 -o /dev/null http://allowed.test/; do sleep 0.1; done")
	if r.code != 0 || !strings.Contains(r.stderr, "The egress proxy of "+name+" ended and was restarted") {
		t.Errorf("exec: exit %d\n%s", r.code, r.stderr)
	}
	within(t, func() bool { return last() == "200\n" })
	u.exec(name, "touch", "/tmp/end").want(t, 0, "")
	u.bottle("wait", name).want(t, 0, "3\n")
	u.bottle("rm", name).want(t, 0, name+"\n")
}

// watcher returns the process that watches a detached bottle; 0 if there is none.
func (u user) watcher(name string) int {
	u.t.Helper()
	var d struct{ Watcher int }
	r := u.bottle("inspect", name, "--format", "{{json .}}")
	if err := json.Unmarshal([]byte(r.stdout), &d); err != nil {
		u.t.Fatalf("%v in %q, %s", err, r.stdout, r.stderr)
	}
	return d.Watcher
}

func (u user) killWatcher(name string) {
	u.t.Helper()
	pid := u.watcher(name)
	if pid == 0 { // kill(2) would kill the test
		u.t.Fatalf("%s has no watcher", name)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		u.t.Fatal(err)
	}
}

// TestDetachedEnds: the helper stops the sandbox when the agent has ended, and the output
// stays.
func TestDetachedEnds(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t).with("FORWARDED=a secret")
	name := u.detached("ends", "-T", "-e", "FORWARDED", "--", "-c", `read -r line; echo "$FORWARDED, $?, $PWD"; exit 4`)
	u.bottle("wait", name).want(t, 0, "4\n")
	within(t, func() bool {
		return u.bottle("list", "-a", "--format", "{{.Status}}").stdout == "stopped, exit code 4\n"
	})
	u.bottle("logs", "-f", name).want(t, 0, "a secret, 1, /workspace\n")
	u.bottle("rm", name).want(t, 0, name+"\n")
	r := u.bottle("run", "sh", "-d", "--proxy", "builtin", "--yes", "--manifest", "none.yaml")
	if r.code != 125 || r.stdout != "" || strings.Contains(r.stderr, "background") {
		t.Errorf("a run that fails: exit %d, %q\n%s", r.code, r.stdout, r.stderr)
	}
}

// within waits until a condition is true.
func within(t *testing.T, condition func() bool) {
	t.Helper()
	for limit := time.Now().Add(longest); !condition(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("the condition did not become true")
		}
	}
}

// TestKeep runs an agent with pipes through PID 1: 100 MB of binary input are intact, and
// after SIGHUP the agent continues.
func TestKeep(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	big := make([]byte, 100<<20)
	_, _ = rand.Read(big)
	u.says(string(big)).bottle("run", "sh", "--keep", "--proxy", "builtin", "--yes", "--", "-c", "sha256sum; exit 6").
		want(t, 6, fmt.Sprintf("%x  -\n", sha256.Sum256(big)))
	const name = "claude-bottle-kept"
	l := begin(t, u.command("run", "wait", "--keep", "--proxy", "builtin", "--yes", "--name", name), name)
	l.signal(syscall.SIGHUP)
	if code := l.wait(); code != 0 || !strings.Contains(l.errs.String(), "Detached: "+name) {
		t.Errorf("SIGHUP: exit %d\n%s", code, l.errs)
	}
	u.says("more input\n").bottle("attach", "kept").want(t, 0, "more input\n")
	u.bottle("rm", "-f", "kept").want(t, 0, name+"\n")
}

// TestSuspend presses Ctrl-Z and lets the agent stop itself, in a session of its own and
// in one that PID 1 holds: the session continues and says so.
func TestSuspend(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	for _, flags := range [][]string{{"--keep"}, {"--no-input"}, {"--runtime", "runc"}} {
		args := append([]string{"run", "sh", "--proxy", "builtin", "--yes"}, flags...)
		x := u.onTerminal(80, 24, append(args, "--", "-c",
			`echo there; kill -STOP $$; echo on; while ! read -r line; do :; done; echo "read $line"; exit 5`)...)
		// PID 1 reads the terminal and notices the stop independently.
		first := x.until("\non\r\n")
		for _, want := range []string{"there\r\n", "a session cannot be suspended, it continues"} {
			if !strings.Contains(first, want) {
				t.Errorf("%v: no %q in\n%s", flags, want, first)
			}
		}
		x.types("\x1a")
		x.types("hello\r")
		x.until("read hello\r\n")
		if code := x.wait(); code != 5 {
			t.Errorf("%v: exit %d", flags, code)
		}
	}
}
