package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// audited is what a test reads of an event.
type audited struct {
	Event, Bottle, Action, Program, Entry, Secret, Source, Command, Error string

	Host, Login, Key string
	Granted          *bool

	HostKey        string   `json:"host_key"`
	PolicyKey      string   `json:"policy_key"`
	UID            int      `json:"uid"`
	SudoUser       string   `json:"sudo_user"`
	ManifestSHA256 string   `json:"manifest_sha256"`
	PolicySHA256   string   `json:"policy_sha256"`
	Image          string   `json:"image"`
	ImageDigest    string   `json:"image_digest"`
	Entries        []string `json:"entries"`
}

func readAudit(t *testing.T, path string) (out []audited, text string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var e audited
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		out = append(out, e)
	}
	return out, string(data)
}

// TestAudit: what a bottle does is written to the audit log, without values of secrets.
// Without a log that can be written nothing is done, or it is done with a warning.
func TestAudit(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.log")
	ada := u.asSudoer().with("SUDO_USER=ada")
	ada.run("sh", "-c", "true").want(t, 0, "")
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the control: something was written: %v", err)
	}

	configureHost(t, "audit: {to: "+path+", on_failure: stop}")
	setPolicy(t, "version: 1\negress: {never: [never.test]}\n")
	l := ada.start("e2e-audit")
	ada.bottle("exec", "-e", "TOKEN=value-of-the-secret", "e2e-audit", "sh", "-c", "echo value-of-the-secret >/dev/null").want(t, 0, "")
	for _, args := range [][]string{{"allow", "e2e-audit", "other.test"}, {"deny", "e2e-audit", "other.test"}} {
		if r := ada.bottle(args...); r.code != 0 {
			t.Errorf("%q: exit %d\n%s", args, r.code, r.stderr)
		}
	}
	oneLine(t, ada.bottle("allow", "e2e-audit", "never.test"), "refused by egress.never", "ask root")
	if code := l.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, l.errs)
	}
	got, text := readAudit(t, path)
	if strings.Contains(text, "value-of-the-secret") {
		t.Errorf("the log has the secret:\n%s", text)
	}
	var summary []string
	for _, e := range got {
		if e.UID != 41001 || e.SudoUser != "ada" {
			t.Errorf("not ada's: %+v", e)
		}
		if e.Bottle != "e2e-audit.u41001" && e.Event != "refusal" {
			t.Errorf("another bottle: %+v", e)
		}
		summary = append(summary, strings.Join([]string{e.Command, e.Event, e.Action, e.Program, e.Entry, strings.Join(e.Entries, "+"), e.Secret, e.PolicyKey, e.Error}, "|"))
	}
	const refused = "host never.test is refused by egress.never in /etc/bottle/policy.yaml"
	want := []string{
		"run|start|||||||", "run|session|exec|sh|||||",
		"exec|session|exec|sh|||||", "exec|secret_use|||||TOKEN||",
		"allow|policy_change|allow||other.test||||", "allow|policy_change|allow||other.test|other.test|||",
		"deny|policy_change|deny||other.test||||", "deny|policy_change|deny||other.test|other.test|||",
		"allow|policy_change|allow||never.test||||", "allow|policy_change|allow||never.test||||" + refused, "allow|refusal||||||egress.never|",
		"run|end|removed||||||",
	}
	if !slices.Equal(summary, want) {
		t.Errorf("events\n%s\nwant\n%s", strings.Join(summary, "\n"), strings.Join(want, "\n"))
	}
	if e := got[0]; len(e.ManifestSHA256) != 64 || len(e.PolicySHA256) != 64 || !strings.HasPrefix(e.ImageDigest, "sha256:") || e.Image == "" {
		t.Errorf("the start: %+v", e)
	}

	// Others can write to the file: it is no record.
	u.chmod(path, 0o666)
	r := ada.run("sh", "-c", "true")
	if r.code != 125 || !strings.Contains(r.stderr, "bottle: write the audit log to "+path+": the file is writable by others") || !strings.Contains(r.stderr, "hint: ask root to repair the audit log") {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
	if names := ada.bottleNames("-a"); len(names) != 0 {
		t.Errorf("left: %q", names)
	}
}

// TestAuditWarns: by default a log that cannot be written stops nothing.
func TestAuditWarns(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	configureHost(t, "audit: {to: "+filepath.Join(t.TempDir(), "none", "audit.log")+"}")
	r := u.run("sh", "-c", "echo ran")
	r.want(t, 0, "ran\n")
	if n := strings.Count(r.stderr, "WARNING: write the audit log to "); n != 1 {
		t.Errorf("%d warnings:\n%s", n, r.stderr)
	}
}

// TestAuditSignatures: a login with the caller's key is written before it is signed, and
// one that cannot be written is not signed.
func TestAuditSignatures(t *testing.T) {
	leakcheck.Check(t)
	o := newSSHOwner(t, "")
	path := filepath.Join(t.TempDir(), "audit.log")
	configureHost(t, "audit: {to: "+path+", on_failure: stop}")
	login := []string{"run", "sh", "--proxy", "builtin", "--yes", "-q", "--", "-c"}
	if r := o.bottle(append(login, "git ls-remote work:demo.git HEAD")...); r.code != 0 {
		t.Fatalf("exit %d\n%s", r.code, r.stderr)
	}
	var signatures, secrets []string
	events, _ := readAudit(t, path)
	for _, e := range events {
		switch e.Event {
		case "signature":
			if e.Granted == nil || e.Key == "" || e.HostKey == "" {
				t.Fatalf("unexpected %+v", e)
			}
			signatures = append(signatures, fmt.Sprintf("%s@%s %v", e.Login, e.Host, *e.Granted))
		case "secret_use":
			secrets = append(secrets, e.Secret+" "+e.Source)
		}
	}
	if !slices.Equal(signatures, []string{"labgit@work true"}) || !slices.Equal(secrets, []string{"work ssh_agent", "other ssh_agent"}) {
		t.Errorf("signatures %q, secrets %q in %+v", signatures, secrets, events)
	}

	l := o.start("e2e-signatures")
	cmd := o.command("exec", l.name, "sh", "-c", "echo ready; read x; git ls-remote work:demo.git HEAD")
	s := begin(t, cmd, l.name) // the session is written, too
	o.chmod(path, 0o666)
	if _, err := s.stdin.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	if code := s.wait(); code == 0 {
		t.Error("a login that could not be written was signed")
	}
	o.chmod(path, 0o600)
	if r := o.exec(l.name, "git", "ls-remote", "work:demo.git", "HEAD"); r.code != 0 {
		t.Errorf("the control, when the log can be written again: exit %d\n%s", r.code, r.stderr)
	}
	if code := l.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, l.errs)
	}
}
