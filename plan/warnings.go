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

// ManifestWarnings returns what is wrong with the policies of a manifest although
// they are valid: entries that can never work, and those that pipelock cannot
// enforce where it is the bottle's proxy.
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

// entryWarnings are about entries that can never work, whatever the proxy.
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
