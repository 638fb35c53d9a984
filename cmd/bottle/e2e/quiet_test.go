package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// TestQuiet: with -q, bottle run prints nothing but what the agent prints. The control is the
// same run without -q, which prints the plan.
func TestQuiet(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	run := []string{"run", "sh", "--proxy", "builtin", "--yes", "--", "-c", "echo out; echo err >&2"}
	if r := u.bottle(run...); r.code != 0 || r.stdout != "out\n" || !strings.Contains(r.stderr, "runtime") {
		t.Errorf("control: exit %d, %q, %q", r.code, r.stdout, r.stderr)
	}
	quiet := append([]string{run[0], run[1], "-q"}, run[2:]...)
	if r := u.bottle(quiet...); r.code != 0 || r.stdout != "out\n" || r.stderr != "err\n" {
		t.Errorf("exit %d, %q, %q", r.code, r.stdout, r.stderr)
	}
	// What has to be confirmed is shown.
	if r := u.says("n\n").bottle("run", "sh", "-q", "--proxy", "builtin"); r.code != 1 || !strings.Contains(r.stderr, "runtime") {
		t.Errorf("with a question: exit %d, %q", r.code, r.stderr)
	}
}

// TestOrigin: the system's configuration is an origin too.
func TestOrigin(t *testing.T) {
	u := newUser(t)
	u.env = []string{"CONTAINERD_ADDRESS=", "CONTAINERD_NAMESPACE=", "HOME=" + u.dir}
	r := u.bottle("config", "show", "--origin", "--namespace", "flag")
	for _, want := range []string{"/etc/bottle/config.yaml\n", "flag", "--namespace\n", "default\n"} {
		if r.code != 0 || !strings.Contains(r.stdout, want) {
			t.Errorf("exit %d, no %q in\n%s%s", r.code, want, r.stdout, r.stderr)
		}
	}
	// A user of sudo can choose a socket in a file of theirs as little as with a flag.
	if err := os.MkdirAll(filepath.Join(u.dir, ".config/bottle"), 0o755); err != nil {
		t.Fatal(err)
	}
	u.write(".config/bottle/config.yaml", "version: 1\naddress: /run/evil.sock\n")
	ada := u.asSudoer().with("SUDO_HOME=" + u.dir)
	if r := ada.bottle("list"); r.code != 125 || !strings.Contains(r.stderr, ".config/bottle/config.yaml: /run/evil.sock is refused: only root chooses the address") {
		t.Errorf("exit %d, %q", r.code, r.stderr)
	}
}
