package manifest

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// changesBase is a manifest; the tests replace parts of it.
const changesBase = `version: 1
bottles:
  dev:
    image: base
    env: {A: 1, B: {from: X}}
    egress: {allow: [a.example, b.example]}
    build: {context: .}
    ssh: [{Host: box, IdentityFile: id}]
  other: {}
agents:
  impl: {bottle: dev, command: [claude]}
`

func TestChanges(t *testing.T) {
	for name, c := range map[string]struct {
		old, new string
		want     []string
	}{
		"nothing":          {"", "", nil},
		"layout":           {"{A: 1, B: {from: X}}", "# a comment\n      {B: {from: X}, A: 1}", nil},
		"a list":           {"[a.example, b.example]", "[a.example, evil.example]", []string{"bottles.dev.egress.allow"}},
		"a new list":       {"egress: {", "egress: {allow_private: [10.0.0.0/8], ", []string{"+bottles.dev.egress.allow_private"}},
		"no list":          {"    egress: {allow: [a.example, b.example]}\n", "", []string{"-bottles.dev.egress.allow"}},
		"variables":        {"{A: 1, B: {from: X}}", "{A: 2, C: {from: SECRET}}", []string{"bottles.dev.env.A", "-bottles.dev.env.B", "+bottles.dev.env.C"}},
		"where it is from": {"{from: X}", "{from: Y}", []string{"bottles.dev.env.B"}},
		"a build":          {"other: {}", "other: {image: x, build: {}}", []string{"+bottles.other.build", "+bottles.other.image"}},
		"a context":        {"context: .", "context: /etc", []string{"bottles.dev.build.context"}},
		"ssh":              {"IdentityFile: id", "User: root, IdentityFile: id", []string{"bottles.dev.ssh box"}},
		"a command":        {"[claude]", "[sh, -c, evil]", []string{"agents.impl.command"}},
		"a skill":          {"command: [claude]", "command: [claude], skills: [review]", []string{"+agents.impl.skills"}},
		"an agent":         {"agents:\n", "agents:\n  more: {bottle: other}\n", []string{"+agents.more"}},
		"a name":           {"other:", "another:", []string{"+bottles.another", "-bottles.other"}},
	} {
		t.Run(name, func(t *testing.T) {
			before, err := Parse("before.yaml", []byte(changesBase))
			if err != nil {
				t.Fatal(err)
			}
			after, err := Parse("after.yaml", []byte(strings.Replace(changesBase, c.old, c.new, 1)))
			if err != nil {
				t.Fatal(err)
			}
			if got := Changes(before, after); !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestChangesCoverAll: a change of any field of a manifest is a change, so that a
// field that is added later cannot be forgotten.
func TestChangesCoverAll(t *testing.T) {
	data, err := os.ReadFile("testdata/good/all.yaml")
	if err != nil {
		t.Fatal(err)
	}
	parse := func() *Manifest {
		m, err := Parse("all.yaml", data)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	before := parse()
	for name, target := range map[string]func(m *Manifest) reflect.Value{
		"bottle": func(m *Manifest) reflect.Value { return reflect.ValueOf(m.Bottles["dev"]).Elem() },
		"agent":  func(m *Manifest) reflect.Value { return reflect.ValueOf(m.Agents["impl"]).Elem() },
	} {
		for i := range target(before).NumField() {
			after := parse()
			field := target(after).Field(i)
			if field.IsZero() {
				t.Errorf("testdata/good/all.yaml does not set %s.%s", name, target(after).Type().Field(i).Name)
			}
			field.SetZero()
			if got := Changes(before, after); len(got) == 0 {
				t.Errorf("a change of %s.%s is not listed", name, target(after).Type().Field(i).Name)
			}
		}
	}
}
