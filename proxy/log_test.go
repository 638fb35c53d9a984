package proxy

import (
	"slices"
	"testing"

	"github.com/bot-bottle/bottle/egress"
)

func TestLearntEntries(t *testing.T) {
	got := LearntEntries([]egress.HostSummary{
		{Destination: "b.test:443", Learnt: 2, Scanner: "allowlist"},
		{Destination: "b.test:80", Learnt: 1, Scanner: "allowlist"},
		{Destination: "a.test:8443", Learnt: 1, Scanner: "port"},
		{Destination: "B.test:443", Learnt: 1, Scanner: "allowlist"},
		{Destination: "203.0.113.9:443", Learnt: 1, Scanner: "allowlist"},
		{Destination: "[2001:db8::1]:8443", Learnt: 1, Scanner: "allowlist"},
		{Destination: "allowed.test:443", Requests: 7},
		{Destination: "refused.test:443", Refused: 1, Scanner: "allowlist"},
		{Destination: "secret.test:80", Learnt: 1, Scanner: "dlp"},
		{Destination: "other.test:443", Learnt: 1, Scanner: "sni"},
		{Destination: "no host\x1b:443", Learnt: 1, Scanner: "allowlist"},
		{Destination: "(no host)", Learnt: 1, Scanner: "allowlist"},
		{Destination: "(others)", Learnt: 1, Scanner: "allowlist"},
	})
	if want := []string{"203.0.113.9", "[2001:db8::1]:8443", "a.test:8443", "b.test"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
