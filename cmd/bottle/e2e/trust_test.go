package e2e

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// TestTrust: on a terminal, the question before the start covers a manifest that is new
// or has changed, and the answer approves it for runs that nobody watches.
func TestTrust(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t).with("TERM=dumb")
	u.untrusting = true
	run := []string{"run", "sh", "--proxy", "builtin", "--", "-c", "echo the agent ran"}
	unattended := []string{"run", "sh", "--proxy", "builtin", "--yes", "--", "-c", "echo the agent ran"}
	asked := func(answer string, code int, want ...string) {
		t.Helper()
		x := u.onTerminal(200, 50, run...)
		text := x.until("[y/N] ")
		x.types(answer + "\n")
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("no %q in:\n%s", w, text)
			}
		}
		if code == 0 {
			x.until("the agent ran\r\n")
		}
		if got := x.wait(); got != code {
			t.Errorf("exit %d, want %d", got, code)
		}
	}

	oneLine(t, u.bottle(unattended...), "untrusted manifest: ", "was never approved", "bottle trust ", "--trust")
	asked("n", 1, "NEW: it was never approved", "Approve this manifest and start?")
	oneLine(t, u.bottle(unattended...), "was never approved") // no is no approval
	asked("y", 0, "NEW: it was never approved", "Approve this manifest and start?")
	u.bottle(unattended...).want(t, 0, "the agent ran\n")
	asked("y", 0, "manifest       approved on ", "Start?")

	// Somebody else's commit.
	u.write("bottle.yaml", strings.Replace(manifest, "allow: [allowed.test,", "allow: [allowed.test, evil.test,", 1))
	oneLine(t, u.bottle(unattended...), "untrusted manifest: ", "has changed since it was approved")
	asked("n", 1, "CHANGED since it was approved on ", ": bottles.dev.egress.allow", "Approve this manifest and start?")
	oneLine(t, u.bottle(unattended...), "has changed since it was approved")
	once := append([]string{"run", "--trust"}, unattended[1:]...)
	u.bottle(once...).want(t, 0, "the agent ran\n")
	oneLine(t, u.bottle(unattended...), "has changed since it was approved") // --trust is for one run
	asked("y", 0, "CHANGED since it was approved on ")
	u.bottle(unattended...).want(t, 0, "the agent ran\n")

	if r := u.bottle("trust", "--revoke"); r.code != 0 {
		t.Errorf("revoke: exit %d\n%s", r.code, r.stderr)
	}
	oneLine(t, u.bottle(unattended...), "was never approved")
}

// TestTrustUnderSudo: approvals are those of the user who ran sudo, written with that
// user's rights, and are the same without sudo. Another user's do not count.
func TestTrustUnderSudo(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	u.mkdirs("home", "other")
	ada := u.asSudoer().with("SUDO_HOME="+filepath.Join(u.dir, "home"), "XDG_STATE_HOME=")
	ada.untrusting = true
	unattended := []string{"--manifest", "bottle.yaml", "run", "sh", "--proxy", "builtin", "--yes", "--", "-c", "echo the agent ran"}
	oneLine(t, ada.bottle(unattended...), "was never approved")
	root := u.with("HOME="+filepath.Join(u.dir, "other"), "XDG_STATE_HOME=")
	if r := root.bottle("--manifest", "bottle.yaml", "trust", "--yes"); r.code != 0 {
		t.Errorf("approval of root: exit %d\n%s", r.code, r.stderr)
	}
	oneLine(t, ada.bottle(unattended...), "was never approved")
	root.untrusting = true
	root.bottle(unattended...).want(t, 0, "the agent ran\n")

	if r := ada.bottle("trust", "--yes"); r.code != 0 {
		t.Fatalf("exit %d\n%s", r.code, r.stderr)
	}
	ada.bottle(unattended...).want(t, 0, "the agent ran\n")
	files := 0
	err := filepath.WalkDir(filepath.Join(u.dir, "home"), func(path string, _ fs.DirEntry, err error) error {
		fi, serr := os.Lstat(path)
		if err := errors.Join(err, serr); err != nil {
			return err
		}
		if st := fi.Sys().(*syscall.Stat_t); st.Uid != 41001 {
			t.Errorf("%s belongs to %d", path, st.Uid)
		}
		if !fi.IsDir() {
			files++
			if fi.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v", path, fi.Mode())
			}
		}
		return nil
	})
	if err != nil || files != 1 {
		t.Errorf("%d files, %v", files, err)
	}

	// Approvals that cannot be read are none, and do not keep --trust from working.
	u.chmod(filepath.Join(u.dir, "home"), 0o700)
	if err := os.Chown(filepath.Join(u.dir, "home"), 0, 0); err != nil {
		t.Fatal(err)
	}
	oneLine(t, ada.bottle("trust", "--yes", "bottle.yaml"), "read approvals", "permission denied")
	oneLine(t, ada.bottle(unattended...), "read approvals", "permission denied")
	ada.untrusting = false
	r := ada.bottle(unattended...)
	r.want(t, 0, "the agent ran\n")
	if !strings.Contains(r.stderr, "WARNING: read approvals") {
		t.Errorf("no warning in:\n%s", r.stderr)
	}
}
