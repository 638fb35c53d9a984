package policy

import (
	"bytes"
	"os"
	"regexp"
	"slices"
	"testing"
)

// TestDocs: docs/hardening.md has a row for each key of the policy and of the system
// configuration, and no others.
func TestDocs(t *testing.T) {
	data, err := os.ReadFile("../docs/hardening.md")
	if err != nil {
		t.Fatal(err)
	}
	// Events of the audit log have a table of their own.
	data, _, _ = bytes.Cut(data, []byte("\n## Audit\n"))
	var got []string
	for _, row := range regexp.MustCompile("(?m)^\\| (`[a-z_.]+`(?:, `[a-z_.]+`)*) \\|").FindAllSubmatch(data, -1) {
		for _, key := range regexp.MustCompile("`([^`]+)`").FindAllSubmatch(row[1], -1) {
			got = append(got, string(key[1]))
		}
	}
	want := slices.Concat(schemaKeys(t), Settings, []string{"audit.on_failure", "audit.to", "users_may_set"})
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("documented\n%q, want\n%q", got, want)
	}
}
