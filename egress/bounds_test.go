package egress

import (
	"slices"
	"testing"
)

// TestBounds: what is outside of a bound, or within one, is found with ports, wildcards,
// presets and prefixes.
func TestBounds(t *testing.T) {
	list := func(s ...string) []string { return s }
	entries := Entries{
		Allow:        list("a.test", "*.b.test", "c.test:8080", "d.test:1000-1010", "203.0.113.7"),
		SSH:          list("git.test:22", "git.test:2222"),
		AllowPrivate: list("10.1.2.0/24", "10.9.9.9", "intra.test", "*.lan.test"),
	}
	for name, c := range map[string]struct {
		find  func([]string) ([]string, error)
		bound []string
		want  []string
	}{
		"outside nothing":      {entries.Outside, nil, list("*.b.test", "203.0.113.7", "a.test", "c.test:8080", "d.test:1000-1010", "git.test:22", "git.test:2222")},
		"outside the same":     {entries.Outside, list("a.test", "*.b.test", "c.test:8080", "d.test:1000-1010", "203.0.113.7", "git.test:22", "git.test:2222"), nil},
		"outside hosts":        {entries.Outside, list("*.test", "git.test"), list("203.0.113.7", "c.test:8080", "d.test:1000-1010", "git.test:2222")},
		"outside a part":       {entries.Outside, list("a.test", "x.b.test", "d.test:1000-1005"), list("*.b.test", "203.0.113.7", "c.test:8080", "d.test:1000-1010", "git.test:22", "git.test:2222")},
		"within nothing":       {entries.Within, nil, nil},
		"within hosts":         {entries.Within, list("*.test"), list("*.b.test", "a.test", "c.test:8080", "d.test:1000-1010", "git.test:22", "git.test:2222")},
		"within a subdomain":   {entries.Within, list("x.b.test"), nil},
		"within an address":    {entries.Within, list("203.0.113.7"), list("203.0.113.7")},
		"private in nothing":   {entries.PrivateOutside, nil, list("*.lan.test", "10.1.2.0/24", "10.9.9.9/32", "intra.test")},
		"private in wide ones": {entries.PrivateOutside, list("10.0.0.0/8", "*.test"), nil},
		"private in narrow":    {entries.PrivateOutside, list("10.1.2.0/25", "10.9.9.9", "x.lan.test"), list("*.lan.test", "10.1.2.0/24", "intra.test")},
	} {
		got, err := c.find(c.bound)
		if err != nil || !slices.Equal(got, c.want) && len(got)+len(c.want) > 0 {
			t.Errorf("%s: got %q, %v; want %q", name, got, err, c.want)
		}
	}
	if _, err := entries.Outside(list("https://x")); err == nil {
		t.Error("an invalid bound is accepted")
	}
}
