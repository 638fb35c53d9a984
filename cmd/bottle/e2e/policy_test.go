package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/scripts/leakcheck"
)

// TestAllowDeny changes what a bottle that runs may reach, and its manifest.
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
	if r := u.bottle("allow", "policy", "refused.test", "--save"); r.code != 0 || !strings.Contains(r.stderr, "may reach refused.test from now on") {
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
	if r := u.bottle("deny", "policy", "x.wild.test"); r.code != 125 || !strings.Contains(r.stderr, "still allowed by the entry *.wild.test") {
		t.Errorf("a host that *.wild.test covers: exit %d\n%s", r.code, r.stderr)
	}
	if r := u.bottle("allow", "policy", "https://refused.test/"); r.code != 125 || !strings.Contains(r.stderr, "it is a URL") {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
	if r := u.bottle("run", "sh", "--proxy", "builtin", "--learn", "--yes"); r.code != 125 || !strings.Contains(r.stderr, "--learn lets everything out") {
		t.Errorf("--learn without anybody: exit %d\n%s", r.code, r.stderr)
	}
	l.end()
}
