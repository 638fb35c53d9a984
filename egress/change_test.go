package egress

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestEntriesAllowing(t *testing.T) {
	base := Entries{Allow: []string{"*.wild.example", "api.example"}, Deny: []string{"sub.wild.example", "port.wild.example:443", "*.no.wild.example", "r.wild.example:10-20"}}
	for _, tc := range []struct {
		rule, changed string
		allow, deny   string // added to, and removed from
		err           string
	}{
		{rule: "new.example", changed: "+new.example", allow: "new.example"},
		{rule: "new.example:3000-3010", changed: "+new.example:3000-3010", allow: "new.example:3000-3010"},
		{rule: "api.example"},
		{rule: "API.example."},
		{rule: "sub.wild.example", changed: "?sub.wild.example", deny: "sub.wild.example"},
		{rule: "sub.wild.example:443", err: "denied by the entry sub.wild.example"},
		{rule: "port.wild.example", changed: "?port.wild.example:443", deny: "port.wild.example:443"},
		{rule: "port.wild.example:443", changed: "?port.wild.example:443", deny: "port.wild.example:443"},
		{rule: "port.wild.example:80", changed: "+port.wild.example:80", allow: "port.wild.example:80"},
		{rule: "a.no.wild.example", err: "denied by the entry *.no.wild.example"},
		{rule: "no.wild.example", err: "denied by the entry *.no.wild.example"},
		{rule: "*.no.wild.example", changed: "?*.no.wild.example", deny: "*.no.wild.example"},
		{rule: "r.wild.example:5-25", changed: "?r.wild.example:10-20 +r.wild.example:5-25", deny: "r.wild.example:10-20", allow: "r.wild.example:5-25"},
		{rule: "r.wild.example:12-18", err: "denied by the entry r.wild.example:10-20"},
	} {
		rule, err := ParseRule(tc.rule)
		if err != nil {
			t.Fatal(err)
		}
		got, change, err := base.Allowing(entryOf(rule))
		var still *StillDeniedError
		if tc.err != "" {
			if !errors.As(err, &still) || !strings.Contains(err.Error(), tc.err) || still.Hint() == "" {
				t.Errorf("%s: %v, want %q", tc.rule, err, tc.err)
			}
			continue
		}
		want := base
		if tc.allow != "" {
			want.Allow = append(slices.Clone(base.Allow), tc.allow)
		}
		want.Deny = slices.DeleteFunc(slices.Clone(base.Deny), func(s string) bool { return s == tc.deny })
		if text := changeText(change); err != nil || text != tc.changed || change.Empty() != (text == "") || !slices.Equal(got.Allow, want.Allow) || !slices.Equal(got.Deny, want.Deny) {
			t.Errorf("%s: %+v, changed %q, %v; want %+v, changed %q", tc.rule, got, text, err, want, tc.changed)
			continue
		}
		checkAllowed(t, got, rule, true)
	}
}

func TestEntriesDenying(t *testing.T) {
	base := Entries{
		Allow: []string{"*.wild.example", "api.example", "api.example:8443", "range.example:10-20", "10.1.2.3"},
		SSH:   []string{"api.example", "git.wild.example"}, Deny: []string{"gone.wild.example"},
	}
	for _, tc := range []struct{ rule, changed, deny string }{
		{rule: "api.example", changed: "-api.example -api.example:8443 -api.example"},
		{rule: "api.example:8443", changed: "-api.example:8443"},
		{rule: "api.example:443", changed: "!api.example:443", deny: "api.example:443"},
		{rule: "api.example:22", changed: "-api.example"},
		{rule: "sub.wild.example", changed: "!sub.wild.example", deny: "sub.wild.example"},
		{rule: "git.wild.example", changed: "-git.wild.example !git.wild.example", deny: "git.wild.example"},
		{rule: "*.wild.example", changed: "-*.wild.example !*.wild.example", deny: "*.wild.example"},
		{rule: "gone.wild.example"},
		{rule: "other.example"},
		{rule: "range.example", changed: "-range.example:10-20"},
		{rule: "range.example:10-20", changed: "-range.example:10-20"},
		{rule: "range.example:15", changed: "!range.example:15", deny: "range.example:15"},
		{rule: "range.example:20-30", changed: "!range.example:20-30", deny: "range.example:20-30"},
		{rule: "range.example:21"},
		{rule: "10.1.2.3", changed: "-10.1.2.3"},
	} {
		rule, err := ParseRule(tc.rule)
		if err != nil {
			t.Fatal(err)
		}
		got, change, err := base.Denying(entryOf(rule))
		if text := changeText(change); err != nil || text != tc.changed || change.Empty() != (text == "") {
			t.Errorf("%s: changed %q, %v; want %q", tc.rule, text, err, tc.changed)
		}
		deny := base.Deny
		if tc.deny != "" {
			deny = append(slices.Clone(deny), tc.deny)
		}
		if !slices.Equal(got.Deny, deny) {
			t.Errorf("%s: deny %q, want %q", tc.rule, got.Deny, deny)
		}
		checkAllowed(t, got, rule, false)
	}
}

// changeText writes + and ! before entries added to allow and deny, - and ? before
// those removed from them.
func changeText(c Change) string {
	var words []string
	for _, list := range []struct {
		mark    string
		entries []string
	}{
		{"-", c.Removed.Allow}, {"-", c.Removed.SSH}, {"?", c.Removed.Deny}, {"+", c.Added.Allow}, {"!", c.Added.Deny},
	} {
		for _, s := range list.entries {
			words = append(words, list.mark+s)
		}
	}
	return strings.Join(words, " ")
}

// checkAllowed checks every port of a rule against the policy.
func checkAllowed(t *testing.T, e Entries, rule Rule, want bool) {
	t.Helper()
	p, err := e.Policy()
	if err != nil {
		t.Fatal(err)
	}
	host := strings.TrimPrefix(rule.Host, "*.")
	for _, ports := range rule.ranges() {
		for port := int(ports.First); port <= int(ports.Last); port++ {
			if v := p.Check(host, port); v.Allowed != want {
				t.Errorf("%s: Check(%s, %d) = %+v", rule, host, port, v)
			}
		}
	}
}
