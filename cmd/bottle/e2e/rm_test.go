package e2e

import (
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// TestRemoveRunning removes running bottles. `bottle rm` and the `bottle run` whose
// session it ends then remove the same bottle at the same time: neither may fail.
func TestRemoveRunning(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	for range 8 {
		l := u.start("claude-bottle-contended")
		u.bottle("rm", "-f", "contended").want(t, 0, "claude-bottle-contended\n")
		if code := l.wait(); code != 137 {
			t.Errorf("the session of a removed bottle: exit %d\n%s", code, l.errs)
		}
		for line := range strings.Lines(l.errs.String()) {
			if strings.HasPrefix(line, "bottle: ") {
				t.Errorf("bottle run reports an error: %s", line)
			}
		}
		if t.Failed() {
			return
		}
	}
}
