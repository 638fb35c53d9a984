package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/bot-bottle/bottle/internal/bytesearch"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

const warmManifest = `
version: 1
bottles:
  dev:
    proxy: {kind: builtin}
    env: {LITERAL: given, KEY: {from: KEY, inject: [allowed.test]}}
    egress: {allow: [allowed.test]}
  claude:
    image: claude-bottle:claude
    proxy: {kind: builtin}
    env: {ANTHROPIC_API_KEY: {from: KEY}}
agents:
  it: {bottle: dev, command: [bash, -c, 'printf "wai%s\n" ting; while read -r line; do eval "$line"; done', it], pool: {size: 1, warm: true}}
  short: {bottle: dev, command: [bash, -c, 'printf "wai%s\n" ting; sleep 2; exit 9'], pool: {size: 1, warm: true}}
  claude: {kind: claude, bottle: claude, unattended: true, pool: {size: 1, warm: true}}
`

// warmScene is a user whose agents are started ahead, with a secret that is injected and a
// value that they have.
func warmScene(t *testing.T, key string) (user, *bytesearch.Search, string) {
	t.Helper()
	s, given := bytesearch.New(t), newToken("giv-", 40)
	s.Add("secret", key)
	s.Add("given", given)
	u := newUser(t).with("KEY="+key, "TERM=xterm-256color")
	u.write("bottle.yaml", strings.Replace(warmManifest, "LITERAL: given", "LITERAL: "+given, 1))
	t.Cleanup(func() { u.bottle("pool", "drain").want(t, 0, "") })
	return u, s, given
}

func (u user) fills(agent string) {
	u.t.Helper()
	if r := u.bottle("pool", "fill", "--trust", agent); r.code != 0 {
		u.t.Fatalf("exit %d\n%s", r.code, r.stderr)
	}
}

type pooled struct{ Agent, State, Created string }

// pooled returns an agent's only prepared bottle; empty: there is none.
func (u user) pooled(agent string) pooled {
	u.t.Helper()
	var pool []pooled
	r := u.bottle("pool", "list", "--json")
	if err := json.Unmarshal([]byte(r.stdout), &pool); err != nil {
		u.t.Fatalf("%v\n%s%s", err, r.stdout, r.stderr)
	}
	for _, b := range pool {
		if b.Agent == agent {
			return b
		}
	}
	return pooled{}
}

// noSecret checks that a bottle's sandbox and bottle's and containerd's files have no secret,
// and that the search finds in its memory what the agent was given.
func noSecret(t *testing.T, s *bytesearch.Search, name string) {
	t.Helper()
	found := s.Memory(name)
	if !slices.ContainsFunc(found, func(f bytesearch.Find) bool { return strings.HasPrefix(f.Form, "given, ") }) {
		t.Errorf("what the agent in %s has is not found in memory, so that the search shows nothing", name)
	}
	for _, root := range []string{"/run/bottle", "/var/lib/bottle", filepath.Join(os.Getenv("LAB_DISK"), "containerd")} {
		found = append(found, s.Files(root)...)
	}
	for _, f := range found {
		ofRun := strings.HasSuffix(f.Place, "/proxy/config/secrets.json") && !strings.Contains(f.Place, "/"+name+"/")
		if strings.HasPrefix(f.Form, "secret, ") && !ofRun {
			t.Errorf("before the run of %s: %s: %s", name, f.Place, f.Form)
		}
	}
}

// TestWarm: a run on a terminal claims an agent that waits for it, and is then as any other:
// name, size, variables, policy, injected secret, exit code. Before, there is no secret in it.
func TestWarm(t *testing.T) {
	leakcheck.Check(t)
	key := newToken("ghp_", 40)
	u, s, given := warmScene(t, key)
	u.fills("it")
	const name, next = "claude-bottle-it", "claude-bottle-it-2"
	noSecret(t, s, name)
	if r := u.bottle("attach", "it"); r.code == 0 || !strings.Contains(r.stderr, "is prepared and not in use") {
		t.Errorf("attach: exit %d, %s", r.code, r.stderr)
	}
	x := u.onTerminal(91, 37, "run", "it", "--yes")
	if plan := x.until("waiting"); !strings.Contains(plan, "yes; up to 1 are kept for the agent, with it started") {
		t.Errorf("plan:\n%s", plan)
	}
	x.types(`stty -echo; stty size; echo "$LITERAL $(hostname)."` + "\r")
	if out := x.until(given + " " + name + ".\r\n"); !strings.Contains(out, "37 91\r\n") {
		t.Errorf("in the terminal:\n%s", out)
	}
	x.types(`curl -sS -H "Authorization: Bearer $KEY" https://allowed.test/auth/` + hashOf(key) + `/; curl -sS -o /dev/null -w 'denied %{http_code}.' http://denied.test/` + "\r")
	if out := x.until("denied 403."); !strings.Contains(out, "hello from allowed.test") {
		t.Errorf("with the secret:\n%s", out)
	}
	if r := u.bottle("attach", "it"); r.code == 0 || !strings.Contains(r.stderr, "no session to attach to") {
		t.Errorf("attach: exit %d, %s", r.code, r.stderr)
	}
	u.exec(name, "sh", "-c", `tr '\0' '\n' </proc/$(pgrep -o bash)/environ | grep ^KEY= | grep -v "$KEY"; true`).want(t, 0, "")
	// The process that prepares the next one has no value.
	u.waitPrepared(next)
	noSecret(t, s, next)
	x.types("exit 7\r")
	if code := x.wait(); code != 7 {
		t.Errorf("exit %d", code)
	}
	// Other runs use another bottle: with other arguments, without a terminal, with a value.
	for _, c := range []struct {
		reason string
		args   []string
	}{
		{"none is ready for this run", []string{"--", "more"}},
		{"the agent gets a value of this run", []string{"-e", "MORE=secret"}},
		{"the bottle's name is given", []string{"--name", "mine"}},
	} {
		x := u.onTerminal(80, 24, append([]string{"run", "it", "--yes"}, c.args...)...)
		if plan := x.until("waiting"); !strings.Contains(plan, "no ("+c.reason+")") {
			t.Errorf("%v: plan:\n%s", c.args, plan)
		}
		x.types("echo $(hostname).; exit 4\r")
		if out := x.until(".\r\n"); strings.Contains(out, next+".") {
			t.Errorf("%v: %s", c.args, out)
		}
		if code := x.wait(); code != 4 {
			t.Errorf("%v: exit %d", c.args, code)
		}
	}
	r := u.says("exit 5\n").bottle("run", "it", "--yes")
	if r.code != 5 || !strings.Contains(r.stderr, "no (the agent was started on a terminal") {
		t.Errorf("without a terminal: exit %d\n%s", r.code, r.stderr)
	}
	// Its client is killed: the agent ends, and what remains is removed as after any run.
	x = u.onTerminal(80, 24, "run", "it", "--yes")
	x.until("waiting")
	if err := x.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = x.cmd.Wait() // it was killed
	within(t, func() bool { return u.bottle("exec", next, "pgrep", "bash").code != 0 })
	if r := u.bottle("cleanup", "--yes"); r.code != 0 || !strings.Contains(r.stdout+r.stderr, next) {
		t.Errorf("cleanup: exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	within(t, func() bool { return u.pooled("it").State == "prepared" })
}

// TestWarmEnds: an agent that ends before its run, or whose start was interrupted, is never
// used, and replaced.
func TestWarmEnds(t *testing.T) {
	leakcheck.Check(t)
	u, _, _ := warmScene(t, newToken("ghp_", 40))
	u.fills("short")
	within(t, func() bool { return u.pooled("short").State == "dead" })
	first := u.pooled("short")
	x := u.onTerminal(80, 24, "run", "short", "--yes")
	if plan := x.until("waiting"); !strings.Contains(plan, "no (none is ready for this run)") {
		t.Errorf("plan:\n%s", plan)
	}
	if code := x.wait(); code != 9 {
		t.Errorf("exit %d", code)
	}
	within(t, func() bool { b := u.pooled("short"); return b.Created != first.Created && b.State != "" })
	u.bottle("pool", "drain").want(t, 0, "")
	filling := u.command("pool", "fill", "--trust", "it")
	if err := filling.Start(); err != nil {
		t.Fatal(err)
	}
	const name = "claude-bottle-it"
	// Its agent is being started, and has not been seen to be ready.
	within(t, func() bool {
		env, _ := os.ReadFile(filepath.Join("/run/bottle", os.Getenv("CONTAINERD_NAMESPACE"), name, "guest/env"))
		return strings.Contains(string(env), "LITERAL=")
	})
	if err := filling.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = filling.Wait() // it was killed
	if b := u.pooled("it"); b.State != "" && b.State != "dead" {
		t.Errorf("after the fill was killed: %+v", b)
	}
	if r := u.bottle("cleanup", "--yes"); r.code != 0 || !strings.Contains(r.stdout+r.stderr, name) {
		t.Errorf("cleanup: exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
}

// TestWarmClaude: Claude Code waits at its prompt, with a placeholder, and works when a run
// has claimed it.
func TestWarmClaude(t *testing.T) {
	leakcheck.Check(t)
	key := "sk-ant-api03-" + newToken("", 50) + "AA"
	u, s, _ := warmScene(t, key)
	u.fills("claude")
	for _, f := range s.Memory("claude-bottle-claude") {
		t.Errorf("before the run: %s: %s", f.Place, f.Form)
	}
	keys := messageKeys(t)
	x := u.onTerminal(100, 30, "run", "claude", "--yes")
	if plan := x.until("bypass permissions"); !strings.Contains(plan, "yes; up to 1") {
		t.Errorf("plan:\n%s", plan)
	}
	x.types("say hello")
	x.until("hello")
	x.types("\r")
	within(t, func() bool { return slices.Contains(keys(), hashOf(key)) })
	for _, k := range keys() {
		if k != hashOf(key) {
			t.Error("a request has another key")
		}
	}
	if err := x.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	x.wait()
	// The next one, which would take as long, is interrupted.
	within(t, func() bool {
		pids := u.filling()
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
		}
		return len(pids) == 0
	})
	if r := u.bottle("cleanup", "--yes"); r.code != 0 {
		t.Errorf("cleanup: exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	if b := u.pooled("claude"); b.State == "prepared" {
		t.Errorf("after the fill was killed: %+v", b)
	}
}

// filling returns the processes that fill the user's pools.
func (u user) filling() (pids []int) {
	u.t.Helper()
	for pid, argv := range bytesearch.Arguments(u.t) {
		if strings.Contains(argv, u.dir) && strings.Contains(argv, "fill") && !ended(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}
