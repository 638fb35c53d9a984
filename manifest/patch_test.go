package manifest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestPatchAllow applies patches with git: the manifest then allows the entries, and
// nothing else changes, including comments.
func TestPatchAllow(t *testing.T) {
	head := "version: 1\n# a comment\nbottles:\n"
	agents := "agents:\n  impl: {bottle: dev}\n"
	for name, text := range map[string]string{
		"lines":                head + "  dev:\n    egress:\n      allow:\n        - one.test # first\n        - two.test\n    env:\n      A: b\n" + agents,
		"brackets":             head + "  dev: {egress: {allow: [one.test]}} # here\n" + agents,
		"no list":              head + "  dev:\n    env: {A: b}\n" + agents,
		"empty list":           head + "  dev: {egress: {allow: []}}\n" + agents,
		"no final newline":     "version: 1\nagents: {impl: {bottle: dev}}\nbottles:\n  dev:\n    egress:\n      allow:\n        - one.test",
		"JSON":                 `{"version": 1, "bottles": {"dev": {"egress": {"allow": ["one.test"]}}}, "agents": {"impl": {"bottle": "dev"}}}` + "\n",
		"JSON on one line":     `{"version": 1, "bottles": {"dev": {}}, "agents": {"impl": {"bottle": "dev"}}}`,
		"another bottle first": head + "  aaa:\n    egress:\n      allow: [x.test]\n  dev:\n    egress:\n      allow: [one.test]\n" + agents,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "bottle.yaml")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			before, err := Parse(file, []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			entries := []string{"new.test", "new.test:8443", "*.wild.test"}
			patch, err := PatchAllow(testCaller, file, "dev", entries)
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("git", "apply", "--verbose", "-")
			cmd.Dir, cmd.Stdin = dir, strings.NewReader(patch)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("git apply: %v: %s\n%s", err, out, patch)
			}
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want := append(slices.Clone(before.Bottles["dev"].Egress.Allow), entries...)
			if !sameBut(before, file, "dev", data, Egress{Allow: want}) {
				t.Errorf("unexpected manifest:\n%s", data)
			}
			if n := strings.Count(string(data), "#"); n != strings.Count(text, "#") {
				t.Errorf("lost comments:\n%s", data)
			}
			if again, err := PatchAllow(testCaller, file, "dev", entries); err != nil || again != "" {
				t.Errorf("second patch: %q, %v", again, err)
			}
		})
	}
	file := filepath.Join(t.TempDir(), "bottle.yaml")
	if _, err := PatchAllow(testCaller, file, "dev", nil); err == nil {
		t.Error("no error for a missing manifest")
	}
}

// TestDiff checks that git can apply the diff of any two texts.
func TestDiff(t *testing.T) {
	texts := []string{"", "a\n", "a", "a\nb\n", "b\na\n", "a\nb", "a\na\na\n", "a\n\n", "1\n2\n3\n4\n5\n6\n7\n8\n9\n", "1\n2\n3\n4\nx\n6\n7\n8\n9\n", "1\n2\n3\n4\n5\n6\n7\n8\n", "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n"}
	for i, before := range texts {
		for j, after := range texts {
			t.Run(fmt.Sprint(i, " ", j), func(t *testing.T) {
				dir := t.TempDir()
				file := filepath.Join(dir, "f")
				if err := os.WriteFile(file, []byte(before), 0o600); err != nil {
					t.Fatal(err)
				}
				patch := diff("f", []byte(before), []byte(after))
				if (patch == "") != (before == after) {
					t.Fatalf("unexpected patch %q", patch)
				}
				if patch == "" {
					return
				}
				cmd := exec.Command("git", "apply", "-")
				cmd.Dir, cmd.Stdin = dir, strings.NewReader(patch)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("git apply: %v: %s\n%s", err, out, patch)
				}
				if got, err := os.ReadFile(file); err != nil || string(got) != after {
					t.Errorf("%q became %q by\n%s", before, got, patch)
				}
			})
		}
	}
}
