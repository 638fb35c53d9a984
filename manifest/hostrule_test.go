package manifest

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/egress/hostrule"
)

func TestAllowRules(t *testing.T) {
	m, err := Load(filepath.Join("testdata/good", "allow_rules.yaml"), testCaller)
	if err != nil {
		t.Fatal(err)
	}
	want := []hostrule.Rule{
		{Host: "api.a.test", Methods: []string{"GET", "PUT"}, Paths: []string{"/repos/me/x/**", "/a b/*"}, Upgrade: true},
		{Host: "api.a.test:8443", Paths: []string{"/"}},
		{
			Host: "git.test", Git: "write", Repos: []string{"me/x", "group/sub/y"}, Push: []string{"refs/heads/bottle/*", "refs/tags/**"},
			Paths: []string{"/raw/**"},
		},
		{Host: "git.test", Git: "read"},
	}
	got := m.Bottles["dev"].Egress
	if !reflect.DeepEqual(got.Rules, want) || !reflect.DeepEqual(got.Allow, []string{"*.a.test", "other.test"}) {
		t.Errorf("got %+v", got)
	}
}

// TestEditBesideRules: an edit of a list with rules changes the other entries only, and
// never makes a host with rules a host without.
func TestEditBesideRules(t *testing.T) {
	const text = `version: 1
bottles:
  lines:
    egress:
      allow:
        - host: r.test
          methods: [GET]
        - a.test
        - host: s.test
          git: read
        - b.test
  only:
    egress:
      allow:
        - {host: r.test, methods: [GET]}
  flow:
    egress: {allow: [{host: r.test, methods: [GET]}, a.test, {host: s.test, git: read}]}
agents: {x: {bottle: lines}}
`
	for _, c := range []struct {
		bottle, entry string
		save          func(path, bottle, entry string) (bool, error)
		old, new      string // no change: an error
	}{
		{"lines", "n.test", saveAllow, "        - b.test\n", "        - b.test\n        - n.test\n"},
		{"lines", "a.test", saveDeny, "        - a.test\n", ""},
		{"lines", "b.test", saveDeny, "        - b.test\n", ""},
		{"only", "n.test", saveAllow, "        - {host: r", "        - n.test\n        - {host: r"},
		{"flow", "n.test", saveAllow, "a.test, {host: s", "a.test, n.test, {host: s"},
		{"flow", "a.test", saveDeny, "a.test, ", ""},
		{"lines", "r.test", saveDeny, "  lines:\n    egress:\n", "  lines:\n    egress:\n      deny:\n        - r.test\n"},
		{"lines", "r.test", saveAllow, "", ""},
		{"flow", "s.test:443", saveAllow, "", ""},
	} {
		path := filepath.Join(t.TempDir(), "bottle.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		want := strings.Replace(text, c.old, c.new, 1)
		_, err := c.save(path, c.bottle, c.entry)
		if (err == nil) != (c.old != c.new) {
			t.Errorf("%s %s: %v", c.bottle, c.entry, err)
		}
		if got, rerr := os.ReadFile(path); rerr != nil || string(got) != want {
			t.Errorf("%s %s: %v, %v\n%s", c.bottle, c.entry, err, rerr, got)
		}
	}
}
