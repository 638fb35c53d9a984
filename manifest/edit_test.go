package manifest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/hint"
)

const editedManifest = `# My bottles.
version: 1

bottles:
  lines:   # block style
    image: a:1

    egress:
      # what it needs
      allow:
        - api.example.com   # the API
        - "*.wild.example"  # all below

      allow_private: [10.0.0.0/8]
    env: {A: b}   # kept
  flow:
    egress: {allow: [a.example, "b.example:8443"], allow_private: []}
  long:
    egress:
      allow: [
        "a.example",
        "b.example"   # the last
      ]
  none: {}
  image: {image: a:1}
  partial:
    egress:
      allow_private: [x.example]
  bare:
    image: b:2
  empty:
    egress: {allow: []}
agents: {x: {bottle: lines}}
`

func saveAllow(path, bottle, entry string) (bool, error) {
	edit, err := SaveAllow(testCaller, path, bottle, entry)
	return edit.Changed(), err
}

func saveDeny(path, bottle, entry string) (bool, error) {
	edit, err := SaveDeny(testCaller, path, bottle, entry)
	return edit.Changed(), err
}

// TestSaveAllow checks that each edit changes the expected lines and no other byte.
func TestSaveAllow(t *testing.T) {
	for _, c := range []struct{ bottle, entry, old, new string }{
		{"lines", "New.example.", "# all below\n", "# all below\n        - new.example\n"},
		{"lines", "new.example:8443", "# all below\n", "# all below\n        - \"new.example:8443\"\n"},
		{"flow", "new.example", `"b.example:8443"]`, `"b.example:8443", new.example]`},
		{"long", "new.example", `"b.example"   # the last`, "\"b.example\",\n        new.example   # the last"},
		{"none", "new.example", "none: {}", "none: {egress: {allow: [new.example]}}"},
		{"image", "*.new.example", "{image: a:1}", `{egress: {allow: ["*.new.example"]}, image: a:1}`},
		{"partial", "new.example", "      allow_private: [x", "      allow:\n        - new.example\n      allow_private: [x"},
		{"bare", "new.example", "    image: b:2", "    egress:\n      allow:\n        - new.example\n    image: b:2"},
		{"empty", "new.example", "{allow: []}", "{allow: [new.example]}"},
		{"lines", "API.example.com", "version", "version"}, // already present
	} {
		path := filepath.Join(t.TempDir(), "bottle.yaml")
		if err := os.WriteFile(path, []byte(editedManifest), 0o640); err != nil {
			t.Fatal(err)
		}
		want := strings.Replace(editedManifest, c.old, c.new, 1)
		changed, err := saveAllow(path, c.bottle, c.entry)
		if err != nil || changed != (want != editedManifest) {
			t.Errorf("%s: %v, %v", c.bottle, changed, err)
			continue
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want {
			t.Errorf("%s: %v\n%s", c.bottle, err, got)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o640 {
			t.Errorf("%s: mode %v, %v", c.bottle, fi.Mode(), err)
		}
		if !changed {
			continue
		}
		// Removing the entry restores the text, except for keys that were empty or missing.
		if changed, err := saveDeny(path, c.bottle, c.entry); err != nil || !changed {
			t.Errorf("%s: remove it again: %v, %v", c.bottle, changed, err)
		}
		got, err = os.ReadFile(path)
		if err != nil || strings.Contains(c.old, "[") && c.bottle == "flow" && string(got) != editedManifest {
			t.Errorf("%s: %v\n%s", c.bottle, err, got)
		}
	}
}

func TestSaveDeny(t *testing.T) {
	for _, c := range []struct{ bottle, entry, old, new string }{
		{"lines", "api.example.com", "        - api.example.com   # the API\n", ""},
		{"lines", "*.wild.example", "        - \"*.wild.example\"  # all below\n", ""},
		{"flow", "a.example", `a.example, `, ``},
		{"flow", "b.example", `, "b.example:8443"`, ``},
		{"long", "a.example", "\"a.example\",\n        ", ""},
		{"flow", "c.example", "version", "version"},
	} {
		path := filepath.Join(t.TempDir(), "bottle.yaml")
		if err := os.WriteFile(path, []byte(editedManifest), 0o600); err != nil {
			t.Fatal(err)
		}
		want := strings.Replace(editedManifest, c.old, c.new, 1)
		if changed, err := saveDeny(path, c.bottle, c.entry); err != nil || changed != (want != editedManifest) {
			t.Errorf("%s %s: %v, %v", c.bottle, c.entry, changed, err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s %s: %v\n%s", c.bottle, c.entry, err, got)
		}
	}
}

// What a wildcard or a range allows is denied by an entry of deny, and allowed again
// by removing that.
func TestSaveDenyList(t *testing.T) {
	for _, c := range []struct{ bottle, entry, old, new string }{
		{"lines", "x.wild.example", "      # what it needs\n      allow:", "      # what it needs\n      deny:\n        - x.wild.example\n      allow:"},
		{"lines", "api.example.com:443", "      # what it needs\n      allow:", "      # what it needs\n      deny:\n        - \"api.example.com:443\"\n      allow:"},
		{"flow", "a.example:80", `{allow: [a.example, `, `{deny: ["a.example:80"], allow: [a.example, `},
	} {
		path := filepath.Join(t.TempDir(), "bottle.yaml")
		if err := os.WriteFile(path, []byte(editedManifest), 0o600); err != nil {
			t.Fatal(err)
		}
		want := strings.Replace(editedManifest, c.old, c.new, 1)
		if changed, err := saveDeny(path, c.bottle, c.entry); err != nil || !changed {
			t.Errorf("%s %s: %v, %v", c.bottle, c.entry, changed, err)
			continue
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s %s: %v\n%s", c.bottle, c.entry, err, got)
		}
		if changed, err := saveDeny(path, c.bottle, c.entry); err != nil || changed {
			t.Errorf("%s %s again: %v, %v", c.bottle, c.entry, changed, err)
		}
		if changed, err := saveAllow(path, c.bottle, c.entry); err != nil || !changed {
			t.Errorf("%s %s: allow again: %v, %v", c.bottle, c.entry, changed, err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		m, err := Parse(path, text)
		if err != nil || len(m.Bottles[c.bottle].Egress.Deny) != 0 {
			t.Errorf("%s %s: %+v, %v", c.bottle, c.entry, m.Bottles[c.bottle].Egress, err)
		}
	}
}

func TestSaveJSON(t *testing.T) {
	const text = `{
  "version": 1,
  "bottles": {
    "é": {"egress": {"allow": ["a.example"]}},
    "lines": {
      "egress": {
        "allow": [
          "a.example",
          "b.example"
        ]
      }
    },
    "none": {}
  }
}
`
	for _, c := range []struct{ bottle, old, new string }{
		{"é", `["a.example"]`, `["a.example", "new.example"]`},
		{"lines", "          \"b.example\"\n", "          \"b.example\",\n          \"new.example\"\n"},
		{"none", `"none": {}`, `"none": {"egress": {"allow": ["new.example"]}}`},
	} {
		path := filepath.Join(t.TempDir(), "bottle.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if changed, err := saveAllow(path, c.bottle, "new.example"); err != nil || !changed {
			t.Errorf("%s: %v, %v", c.bottle, changed, err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != strings.Replace(text, c.old, c.new, 1) {
			t.Errorf("%s: %v\n%s", c.bottle, err, got)
		}
	}
}

// TestSaveByHand checks that a text that cannot be edited safely does not change, and that
// the hint says what to do.
func TestSaveByHand(t *testing.T) {
	for name, text := range map[string]string{
		"alias":                    "version: 1\nbottles:\n  a: {egress: {allow: &l [x.example]}}\n  b: {egress: {allow: *l}}\n",
		"anchor that another uses": "version: 1\nbottles:\n  b: {egress: {allow: &l [x.example]}}\n  a: {egress: {allow: *l}}\n",
	} {
		path := filepath.Join(t.TempDir(), "bottle.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := saveAllow(path, "b", "new.example")
		if err == nil || !strings.Contains(hint.Of(err), "add new.example under bottles, b, egress, allow by hand") {
			t.Errorf("%s: %v, hint %q", name, err, hint.Of(err))
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Errorf("%s: %v\n%s", name, err, got)
		}
	}
}
