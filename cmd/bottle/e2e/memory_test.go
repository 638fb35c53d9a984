package e2e

import (
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/bytesearch"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// TestSSHKeyInMemory searches the sandbox's memory for a private key while its
// agent signs, and afterwards. The control is a value that a session received.
func TestSSHKeyInMemory(t *testing.T) {
	leakcheck.Check(t)
	o := newSSHOwner(t, "")
	l := o.start("claude-bottle-memory")
	s := bytesearch.New(t)
	s.Add("key", string(o.private.Seed()))
	s.Add("key's file", o.secret)
	const planted = "planted-in-a-session-0123456789"
	s.Add("control", planted)
	control := begin(t, o.command("exec", "-e", "PLANTED="+planted, l.name, "sh", "-c", "echo ready; cat"), l.name)
	o.exec(l.name, "sh", "-c", "git ls-remote work:demo.git HEAD | wc -l").want(t, 0, "1\n")
	there := false
	for _, f := range s.Memory(l.name) {
		if !strings.HasPrefix(f.Form, "control,") {
			t.Errorf("%s: %s", f.Place, f.Form)
		}
		there = there || strings.HasPrefix(f.Form, "control,")
	}
	if !there {
		t.Error("what a session was given is not found in memory, so that the search shows nothing")
	}
	if code := control.end(); code != 0 {
		t.Errorf("the session: exit %d", code)
	}
	if code := l.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, l.errs)
	}
}
