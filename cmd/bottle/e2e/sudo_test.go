package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// attempt is something that a user who may run only bottle with sudo must not achieve. Its
// success is observed from outside: the secret of root and bob is in the output, a file of
// root's has changed, a program has recorded in /home/ada/uid that root ran it, or a
// victim on the host's loopback interface or at a socket got a connection.
type attempt struct {
	name   string
	script string // of ada, in a directory of work, see prelude
	policy string // of the administrator; empty: none
	// refused is in the output of a failed attempt: it was the guard that stopped it.
	refused string
	exit0   bool   // exit code 0 is success, too
	ends    bool   // so is the end of bob's bottle
	seen    string // so is this in the output
	// The control is the same script with the policy in its place, or as root without one;
	// or else another script of root's.
	permitted string
	control   string
}

// trial is the observer's state before an attempt.
type trial struct {
	h    *sudoHost
	tree string
}

func (h *sudoHost) begin() trial {
	h.t.Helper()
	h.hits.Store(0)
	must(h.t, os.RemoveAll(h.root+"/home/ada/uid"))
	return trial{h, h.victims()}
}

// victims returns a hash of root's files.
func (h *sudoHost) victims() string {
	h.t.Helper()
	sum := sha256.New()
	for _, dir := range []string{"/root/victim", "/root/.ssh", "/etc/sudoers.d", "/etc/bottle"} {
		err := filepath.WalkDir(h.root+dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			text := ""
			if d.Type().IsRegular() {
				data, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				text = string(data)
			}
			_, err = fmt.Fprintf(sum, "%s %s %q\n", path, d.Type(), text)
			return err
		})
		must(h.t, err)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// success says how an attempt has succeeded; empty: it has not.
func (tr trial) success(a attempt, r result) string {
	ran, _ := os.ReadFile(tr.h.root + "/home/ada/uid") // nothing ran
	switch {
	case strings.Contains(r.stdout+r.stderr, tr.h.secret):
		return "the secret was read"
	case a.seen != "" && strings.Contains(r.stderr, a.seen):
		return a.seen
	case tr.tree != tr.h.victims():
		return "a file of root's was changed"
	case slices.Contains(strings.Fields(string(ran)), "0"):
		return "root ran a program"
	case tr.h.hits.Load() > 0:
		return "a victim got a connection"
	case a.ends && tr.h.run(0, "$B exec theirs.u41002 true").code != 0:
		return "another user's bottle was ended"
	case a.exit0 && r.code == 0:
		return "exit code 0"
	}
	return ""
}

// TestSudo: a user whom sudo lets run only bottle neither reads nor writes files of root
// and other users, nor runs anything as root, reaches the host's loopback interface from a
// build, enters or ends another user's bottle, or uses what the policy forbids.
func TestSudo(t *testing.T) {
	leakcheck.Check(t)
	h := newSudoHost(t)
	h.listen()
	h.publish()
	h.pipe()
	h.fixtures()
	may := h.good(ada, "sudo -n -l").stdout
	if lines := strings.Split(strings.TrimSpace(may), "\n"); strings.TrimSpace(lines[len(lines)-1]) != "(root) NOPASSWD: /usr/bin/bottle" || strings.Count(may, "NOPASSWD") != 1 {
		t.Fatalf("ada may run more than bottle:\n%s", may)
	}
	// Without a policy sudo is asked who may become root: eve may.
	h.good(eve, "m; dry --runtime runc")
	h.start(ada, "mine")
	for _, name := range []string{"theirs", "second", "third"} {
		h.start(bob, name)
	}
	h.good(bob, "$B exec theirs sh -c 'echo "+h.secret+" >/tmp/mark'")
	attempts := slices.Concat(fileAttempts, optionAttempts, hostAttempts)
	for _, a := range attempts {
		t.Run(a.name, func(t *testing.T) { h.try(t, a) })
	}
	if now := h.good(ada, "sudo -n -l").stdout; now != may {
		t.Errorf("ada may run\n%s\nbefore that\n%s", now, may)
	}
	if len(attempts) < 60 {
		t.Errorf("only %d attempts", len(attempts))
	}
}

// start starts a bottle of a user.
func (h *sudoHost) start(uid int, name string) {
	h.t.Helper()
	begin(h.t, h.sh(uid, `m
sed -i 's/\[sh\]/[sh, -c, "echo ready; cat"]/' m.yaml
exec $B --manifest "$PWD/m.yaml" run a --proxy builtin --yes -q --trust --name `+name), name)
}

// try makes an attempt and its control.
func (h *sudoHost) try(t *testing.T, a attempt) {
	t.Helper()
	outer := h.t
	h.t = t
	defer func() { h.t = outer }()
	h.policy(a.policy)
	tr := h.begin()
	r := h.run(ada, a.script)
	if how := tr.success(a, r); how != "" {
		t.Errorf("%s: exit %d\n%s%s", how, r.code, r.stdout, r.stderr)
	}
	if a.refused == "" || !strings.Contains(r.stdout+r.stderr, a.refused) {
		t.Errorf("want %q; exit %d\n%s%s", a.refused, r.code, r.stdout, r.stderr)
	}
	uid, script := 0, a.script
	switch {
	case a.permitted != "":
		uid = ada
		h.policy(a.permitted)
	case a.control != "":
		script = a.control
		fallthrough
	default:
		h.policy("")
	}
	tr = h.begin()
	if r := h.run(uid, script); tr.success(a, r) == "" {
		t.Errorf("control: exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	h.fixtures()
}

// policy sets the administrator's policy; empty: there is none.
func (h *sudoHost) policy(text string) {
	h.t.Helper()
	if text == "" {
		must(h.t, os.RemoveAll(policyFile))
		return
	}
	changePolicy(h.t, text)
}
