package e2e

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// TestLearn runs an agent that needs more than its policy allows, with a user who
// watches, and ends with a patch of the manifest. Under the patched manifest the same
// requests are allowed, and others are not.
func TestLearn(t *testing.T) {
	leakcheck.Check(t)
	const agent = `curl -sS -m 10 -o /dev/null -w 'https %{http_code}\n' https://refused.test/
curl -sS -m 10 -o /dev/null -w 'http %{http_code}\n' http://refused.test/
curl -sS -m 10 -o /dev/null -w 'allowed %{http_code}\n' https://allowed.test/
git ls-remote https://git.refused.test/demo.git HEAD >/dev/null && echo git 0
curl -sS -m 10 -o /dev/null -w 'port %{http_code}\n' http://evilallowed.test:8080/
curl -sS -m 10 -o /dev/null -w 'private %{http_code}\n' http://private.test/
echo over`
	passed := []string{"https 200\n", "http 200\n", "allowed 200\n", "git 0\n", "port 502\n"} // the last does not speak HTTP
	u := newUser(t)
	says := func(text string) string { return strings.ReplaceAll(text, "\r\n", "\n") }
	check := func(when, out string, want bool) {
		t.Helper()
		for _, line := range passed {
			if strings.Contains(out, line) != (want || line == "allowed 200\n") {
				t.Errorf("%s: %q in the output: %v\n%s", when, line, !want, out)
			}
		}
		if !strings.Contains(out, "private 403\n") {
			t.Errorf("%s: a private address is not refused:\n%s", when, out)
		}
	}
	// The control: the policy refuses it.
	check("before", u.run("sh", "-c", agent).stdout, false)

	seen := labtest.World(t)
	x := u.with("TERM=dumb").onTerminal(200, 50, "run", "sh", "--proxy", "builtin", "--learn", "--", "-c", agent)
	if plan := says(x.until("Start? [y/N] ")); !strings.Contains(plan, "NOTHING IS BLOCKED: THE AGENT REACHES EVERY PUBLIC HOST") {
		t.Errorf("the plan does not say what is at stake:\n%s", plan)
	}
	x.types("y\r")
	out := says(x.until("over\r\n"))
	check("learning", out, true)
	x.until("with this patch:\r\n")
	code := x.wait()
	_ = x.far.Close() // so that what was written has an end
	var patch strings.Builder
	for b := range x.out {
		patch.WriteByte(b)
	}
	if code != 0 {
		t.Errorf("exit %d", code)
	}
	reached := map[string]bool{}
	for _, e := range seen() {
		reached[e.Host] = true
	}
	if !reached["refused.test"] || reached["private.test"] {
		t.Errorf("the world saw requests for %v", reached)
	}

	apply := exec.Command("git", "apply", "-")
	apply.Dir, apply.Stdin = u.dir, strings.NewReader(says(patch.String()))
	if text, err := apply.CombinedOutput(); err != nil {
		t.Fatalf("git apply: %v: %s\n%s", err, text, &patch)
	}
	if r := u.bottle("config", "check"); r.code != 0 {
		t.Errorf("config check: exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	r := u.run("sh", "-c", agent+"\ncurl -sS -m 10 -o /dev/null -w 'other %{http_code}\\n' http://evilwild.test/")
	check("with the patch", r.stdout, true)
	if !strings.Contains(r.stdout, "other 403\n") {
		t.Errorf("what nobody asked for is allowed:\n%s", r.stdout)
	}
}

// TestLearnUnattended checks that --learn is refused without a user who watches.
func TestLearnUnattended(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	const want = "--learn allows every public host and needs somebody to watch"
	for _, flag := range []string{"--yes", "--no-input"} {
		x := u.onTerminal(200, 50, "run", "sh", "--proxy", "builtin", "--learn", flag)
		x.until(want)
		if code := x.wait(); code != 125 {
			t.Errorf("%s: exit %d", flag, code)
		}
	}
	for _, args := range [][]string{{}, {"--yes"}, {"--json"}, {"-t"}} {
		r := u.says("y\n").bottle(append([]string{"run", "sh", "--proxy", "builtin", "--learn"}, args...)...)
		if r.code != 125 || r.stdout != "" || !strings.Contains(r.stderr, want) {
			t.Errorf("%q without a terminal: exit %d, %q\n%s", args, r.code, r.stdout, r.stderr)
		}
	}
	x := u.onTerminal(200, 50, "run", "sh", "--proxy", "pipelock", "--learn")
	x.until("pipelock cannot learn a policy")
	if code := x.wait(); code != 125 {
		t.Errorf("pipelock: exit %d", code)
	}
}
