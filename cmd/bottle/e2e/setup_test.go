package e2e

import (
	"strings"
	"testing"
)

// TestSetupIsRoots: a user of sudo who may run nothing but bottle cannot have root install
// programs. The control is the same for root. What setup does is tested in scripts/readme.
func TestSetupIsRoots(t *testing.T) {
	u := newUser(t)
	for _, args := range [][]string{{"setup", "--dry-run", "--from", u.dir}, {"setup", "--undo", "--dry-run"}} {
		if r := u.asSudoer().bottle(args...); r.code != 125 || !strings.Contains(r.stderr, "only root sets up this host") {
			t.Errorf("%q: exit %d, %q", args, r.code, r.stderr)
		}
	}
	if r := u.bottle("setup", "--undo", "--dry-run"); r.code != 0 || !strings.Contains(r.stderr, "There is nothing to remove.") {
		t.Errorf("control: exit %d, %q", r.code, r.stderr)
	}
	// On the test host, programs are not where setup looks for them, but its containerd answers.
	if r := u.bottle("setup", "--dry-run", "--from", u.dir); r.code != 125 || !strings.Contains(r.stderr, "missing release file gvisor-") || !strings.Contains(r.stderr, ".tar.bz2 in "+u.dir) || strings.Contains(r.stderr, "containerd-2") {
		t.Errorf("control: exit %d, %q", r.code, r.stderr)
	}
}

// TestSetupNotRoot: setup needs root.
func TestSetupNotRoot(t *testing.T) {
	r := finish(t, newUser(t).asNobody("setup", "--dry-run"))
	if r.code != 125 || !strings.Contains(r.stderr, "this needs root") || !strings.Contains(r.stderr, "hint: sudo bottle setup") {
		t.Errorf("exit %d, %q", r.code, r.stderr)
	}
}
