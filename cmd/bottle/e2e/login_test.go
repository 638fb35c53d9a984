package e2e

import (
	"os"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// TestLoginAndCommand: an agent gets the stored login and a variable that a program
// prints, which runs neither for a plan nor before the question.
func TestLoginAndCommand(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	u.write("bottle.yaml", `
version: 1
bottles:
  dev: {env: {X: {command: [sh, -c, "echo ran >>`+u.dir+`/ran; echo printed; echo asks >&2"]}}}
  given: {env: {CLAUDE_CODE_OAUTH_TOKEN: {inject: false}}}
agents:
  own: {kind: claude, bottle: dev, command: [sh, -c, 'echo "$CLAUDE_CODE_OAUTH_TOKEN $X"']}
  given: {kind: claude, bottle: given, command: [sh, -c, 'echo "$CLAUDE_CODE_OAUTH_TOKEN"']}
`)
	u = u.with("HOME=" + t.TempDir())
	if r := u.says("stored-token\n").bottle("login", "claude"); r.code != 0 || strings.Contains(r.stderr+r.stdout, "stored-token") {
		t.Fatalf("exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	for _, args := range [][]string{{"--dry-run"}, {"--no-input"}} {
		r := u.bottle(append([]string{"run", "own", "--proxy", "builtin"}, args...)...)
		if !strings.Contains(r.stderr, `X (command: sh -c "echo ran`) || strings.Contains(r.stderr, "stored-token") {
			t.Errorf("%q:\n%s", args, r.stderr)
		}
	}
	u.run("given").want(t, 0, "stored-token\n")
	r := u.run("own")
	if placeholder, printed := strings.CutSuffix(r.stdout, " printed\n"); !printed || placeholder == "" || strings.Contains(placeholder, "stored-token") {
		t.Errorf("exit %d, %q\n%s", r.code, r.stdout, r.stderr)
	}
	if !strings.Contains(r.stderr, "\nasks\n") {
		t.Errorf("the program's standard error is missing:\n%s", r.stderr)
	}
	if got, err := os.ReadFile(u.dir + "/ran"); err != nil || string(got) != "ran\n" {
		t.Errorf("the program ran %q, %v", got, err)
	}
}
