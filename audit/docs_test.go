package audit

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDocs: docs/hardening.md lists each field and each kind of event, and no others. The
// names are stable: nothing may be removed from these lists.
func TestDocs(t *testing.T) {
	data, err := os.ReadFile("../docs/hardening.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(data), "\n## Audit\n")
	section, _, _ = strings.Cut(section, "\n## ")
	_, events, _ := strings.Cut(section, "| `event` | written |")
	events, fieldTable, _ := strings.Cut(events, "| field | meaning |")
	var names []string
	for _, f := range fields(&record{}) {
		names = append(names, f.name)
	}
	for what, c := range map[string]struct {
		table string
		want  []string
	}{"events": {events, Kinds}, "fields": {fieldTable, names}} {
		var got []string
		for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` \\|").FindAllStringSubmatch(c.table, -1) {
			got = append(got, m[1])
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("documented %s\n%q, want\n%q", what, got, c.want)
		}
	}
}
