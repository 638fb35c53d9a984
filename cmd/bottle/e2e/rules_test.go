package e2e

import (
	"crypto/rand"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

const rulesManifest = `
version: 1
bottles:
  ruled:
    egress:
      allow:
        - {host: allowed.test, methods: [GET], paths: ["/headers"]}
        - {host: git.allowed.test, git: write, repos: [demo], push: ["refs/heads/bottle/*"]}
        - wild.test
  free:
    egress: {allow: [allowed.test, git.allowed.test, wild.test]}
agents:
  ruled: {bottle: ruled, command: [sh, -c, "echo ready; cat"]}
  free: {bottle: free, command: [sh, -c, "echo ready; cat"]}
`

// TestHostRules: requests and pushes that the rules do not allow do not leave a bottle, also
// after live changes of the policy. The control is a bottle whose policy has the same hosts
// without rules.
func TestHostRules(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	u.write("bottle.yaml", rulesManifest)
	const ruled, free = "claude-bottle-ruled", "claude-bottle-free"
	bottles := map[string]*live{ruled: u.startAgent("ruled", ruled), free: u.startAgent("free", free)}
	inside := func(name, script string) string {
		t.Helper()
		r := u.bottle("exec", "-T", name, "bash", "-c", "exec 2>&1; "+script)
		return r.stdout + r.stderr
	}
	id := strings.ToLower(rand.Text())
	clone := "cd $(mktemp -d) && git clone -q https://git.allowed.test/demo.git w && cd w && echo " + id + " >new && git add new && " +
		"git -c user.name=a -c user.email=a@b commit -qm new && git tag -f t-" + id + " && "
	push := func(ref string) string { return clone + "git push origin " + ref + " && echo pushed" }
	for _, c := range []struct {
		script  string
		allowed string // what is printed without rules, and if the rules allow it
		refused string // what is printed if they do not; empty: they allow it
	}{
		{"curl -sS https://allowed.test/headers", `"User-Agent":["curl/`, ""},
		{"curl -sS -d x https://allowed.test/echo", "x", "bottle: no rule for this host allows POST of this path"},
		{"curl -sS https://allowed.test/", "hello from allowed.test", "bottle: no rule for this host allows GET of this path"},
		{"curl -sS --path-as-is https://allowed.test/headers/../", "Temporary Redirect", "bottle: ambiguous path: it has a dot segment"},
		{"curl -sS https://wild.test/", "hello from wild.test", ""},
		{push("HEAD:bottle/" + id), "pushed", ""},
		{push("HEAD:other-" + id), "pushed", "remote: bottle: no rule for this host allows a push to refs/heads/other-" + id},
		{push("t-" + id), "pushed", "remote: bottle: no rule for this host allows a push to refs/tags/t-" + id},
		{clone + "git push origin :bottle/" + id + " && echo pushed", "pushed", ""},
	} {
		want := c.allowed
		if c.refused != "" {
			want = c.refused
		}
		if out := inside(ruled, c.script); !strings.Contains(out, want) || c.refused != "" && strings.Contains(out, "pushed") {
			t.Errorf("%s: no %q in\n%s", c.script, want, out)
		}
		if strings.Contains(c.script, "/"+id) {
			continue // the same branch in the same repository
		}
		if out := inside(free, c.script); !strings.Contains(out, c.allowed) {
			t.Errorf("without rules: %s: no %q in\n%s", c.script, c.allowed, out)
		}
	}
	inside(free, "cd $(mktemp -d) && git clone -q https://git.allowed.test/demo.git w && cd w && git push origin :other-"+id+" :t-"+id)
	if out := inside(free, "curl -sSv https://allowed.test/ | grep issuer"); !strings.Contains(out, "bottle lab test authority") {
		t.Errorf("a host without rules is terminated: %s", out)
	}

	r := u.bottle("allow", ruled, "allowed.test")
	if r.code != 125 || !strings.Contains(r.stderr, "allowed.test has rules for its requests") {
		t.Errorf("allow: exit %d, %s", r.code, r.stderr)
	}
	u.bottle("deny", ruled, "allowed.test").want(t, 0, "")
	if out := inside(ruled, "curl -sS https://allowed.test/headers"); !strings.Contains(out, "403") {
		t.Errorf("denied: %s", out)
	}
	u.bottle("allow", ruled, "allowed.test").want(t, 0, "")
	if out := inside(ruled, "curl -sS https://allowed.test/headers; curl -sS https://allowed.test/"); !strings.Contains(out, "curl/") || !strings.Contains(out, "no rule") {
		t.Errorf("allowed again: %s", out)
	}

	log := u.bottle("egress", ruled, "--json").stdout
	for _, want := range []string{
		`"url":"https://allowed.test:443/headers"`, `"verdict":"sent"`, `"refs":["refs/heads/bottle/` + id + `"]`, `"scanner":"rules"`, `"reason":"no rule for this host allows POST of this path"`,
		`"reason":"no rule for this host allows a push to refs/heads/other-` + id + `"`,
	} {
		if !strings.Contains(log, want) {
			t.Errorf("no %s in\n%s", want, log)
		}
	}
	for name, l := range bottles {
		if code := l.end(); code != 0 {
			t.Errorf("%s: exit %d\n%s", name, code, l.errs)
		}
	}
	if errs := bottles[ruled].errs.String(); !strings.Contains(errs, "no rule of egress.allow allows the request") {
		t.Errorf("the summary does not say why:\n%s", errs)
	}
}

// TestHostRulesNeedBuiltin: rules are never ignored.
func TestHostRulesNeedBuiltin(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	u.write("bottle.yaml", rulesManifest)
	r := u.bottle("run", "ruled", "--proxy", "pipelock", "--yes")
	if r.code != 125 || !strings.Contains(r.stderr, `allow entry "allowed.test:443": not supported by pipelock: it does not read requests`) {
		t.Errorf("exit %d, %q", r.code, r.stderr)
	}
}
