package proxy

import (
	"slices"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/hint"
)

func TestLearnedEntries(t *testing.T) {
	got := LearnedEntries([]egress.HostSummary{
		{Destination: "b.test:443", Learned: 2, Scanner: "allowlist"},
		{Destination: "b.test:80", Learned: 1, Scanner: "allowlist"},
		{Destination: "a.test:8443", Learned: 1, Scanner: "port"},
		{Destination: "B.test:443", Learned: 1, Scanner: "allowlist"},
		{Destination: "203.0.113.9:443", Learned: 1, Scanner: "allowlist"},
		{Destination: "9.9.9.9:443", Learned: 1, Scanner: "allowlist"},
		{Destination: "[2001:db8::1]:8443", Learned: 1, Scanner: "allowlist"},
		{Destination: "allowed.test:443", Requests: 7},
		{Destination: "refused.test:443", Refused: 1, Scanner: "allowlist"},
		{Destination: "secret.test:80", Learned: 1, Scanner: "dlp"},
		{Destination: "other.test:443", Learned: 1, Scanner: "sni"},
		{Destination: "no host\x1b:443", Learned: 1, Scanner: "allowlist"},
		{Destination: "(no host)", Learned: 1, Scanner: "allowlist"},
		{Destination: "(others)", Learned: 1, Scanner: "allowlist"},
	})
	if want := []string{"9.9.9.9", "a.test:8443", "b.test"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestAllowingEntry: an entry is suggested only if it would work.
func TestAllowingEntry(t *testing.T) {
	for _, c := range []struct{ destination, scanner, want, reason string }{
		{"a.test:443", "allowlist", "a.test", ""},
		{"a.test:8443", "port", "a.test:8443", ""},
		{"9.9.9.9:8443", "allowlist", "9.9.9.9:8443", ""},
		{"a.test:443", "dlp", "", ""},
		{"0.0.0.0:8123", "allowlist", "", "the unspecified address"},
		{"127.0.1.1:80", "port", "", "a loopback address"},
		{"localhost:3000", "allowlist", "", "a loopback address"},
		{"[::1]:8080", "allowlist", "", "a loopback address"},
		{"10.77.0.2:8000", "allowlist", "", "an address of the sandbox itself"},
		{"10.1.2.3:80", "allowlist", "", "a private address that allow_private does not list"},
		{"169.254.169.254:80", "allowlist", "", "a link-local address that allow_private does not list"},
	} {
		got, problem := AllowingEntry(c.destination, c.scanner)
		reason := ""
		if problem != nil {
			reason = problem.Reason
		}
		if got != c.want || !strings.Contains(reason, c.reason) || (reason == "") != (c.reason == "") {
			t.Errorf("%s (%s): %q, %q; want %q, %q", c.destination, c.scanner, got, reason, c.want, c.reason)
		}
	}
}

// TestReachable: allowing an entry that cannot work is an error, and its hint says
// what is missing.
func TestReachable(t *testing.T) {
	for entry, want := range map[string]string{
		"10.1.2.3": "add 10.1.2.3 to egress.allow_private", "0.0.0.0:8123": "without the proxy", "localhost": "without the proxy",
	} {
		rule, err := egress.ParseRule(entry)
		if err != nil {
			t.Fatal(err)
		}
		if err := reachable(egress.Entries{Allow: []string{entry}}, rule); err == nil || !strings.Contains(hint.Of(err), want) {
			t.Errorf("%s: %v, hint %q", entry, err, hint.Of(err))
		}
	}
	// The control: with allow_private it works.
	rule, err := egress.ParseRule("10.1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	if err := reachable(egress.Entries{Allow: []string{"10.1.2.3"}, AllowPrivate: []string{"10.0.0.0/8"}}, rule); err != nil {
		t.Error(err)
	}
}
