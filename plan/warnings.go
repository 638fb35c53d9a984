package plan

import (
	"fmt"
	"maps"
	"slices"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/segment"
	"github.com/bot-bottle/bottle/manifest"
)

// ManifestWarnings returns the problems of valid policies in a manifest: entries that
// can never match, and entries that pipelock cannot enforce if it is the proxy.
func ManifestWarnings(m *manifest.Manifest) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(m.Bottles)) {
		b := m.Bottles[name]
		entries := entriesOf(b.Egress, b.SSH)
		warnings := entryWarnings(entries)
		if b.Proxy.Kind != manifest.ProxyBuiltin {
			warnings = append(warnings, pipelockWarnings(entries, b.Proxy)...)
		}
		for _, w := range warnings {
			out = append(out, fmt.Sprintf("bottle %s: %s", name, w))
		}
	}
	return out
}

// entryWarnings reports entries that can never match, with any proxy.
func entryWarnings(entries egress.Entries) []string {
	var out []string
	for _, problem := range entries.Problems(segment.Agent.Masked()) {
		out = append(out, withHint(problem))
	}
	return out
}

func pipelockWarnings(entries egress.Entries, p manifest.Proxy) []string {
	_, version, err := pipelockImage(p)
	if err == nil {
		var policy egress.Policy
		if policy, err = entries.Policy(); err == nil {
			err = policy.CheckPipelock(version)
		}
	}
	var out []string
	for _, one := range hint.Split(err) {
		out = append(out, withHint(one))
	}
	return out
}

func withHint(err error) string {
	if advice := hint.Of(err); advice != "" {
		return err.Error() + "; " + advice
	}
	return err.Error()
}
