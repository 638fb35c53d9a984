package egress

import (
	"fmt"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/internal/lazyregexp"
	"github.com/bot-bottle/bottle/internal/nearest"
)

// Preset is a named list of hosts. Its name, which begins with an @, stands for the
// hosts in allow and deny lists.
type Preset struct {
	Name  string       `json:"name"`
	Use   string       `json:"use"` // what the hosts are for
	Hosts []PresetHost `json:"hosts"`
}

// PresetHost is a host of a preset.
type PresetHost struct {
	Host string `json:"host"`
	// Sends says how data can be sent out through the host: to somebody other than its
	// operator. Empty if there is no known way, except for the host's statistics.
	Sends string `json:"sends,omitempty"`
}

// Presets returns all presets, sorted by name.
func Presets() []Preset {
	out := slices.Clone(presets)
	for i := range out {
		out[i].Hosts = slices.Clone(out[i].Hosts)
	}
	return out
}

// presetName matches what is meant as the name of a preset. It cannot be part of an
// address with a user, whose text in front of the @ may be a password.
var presetName = lazyregexp.New(`^@[A-Za-z0-9_-]{1,40}$`)

// IsPreset reports whether an entry is meant as the name of a preset, known or not.
func IsPreset(entry string) bool { return presetName().MatchString(entry) }

// LookupPreset returns a preset by its name. The error is an [*UnknownPresetError].
func LookupPreset(name string) (Preset, error) {
	for _, p := range Presets() {
		if p.Name == name {
			return p, nil
		}
	}
	return Preset{}, &UnknownPresetError{Name: name}
}

// UnknownPresetError is the error for a preset that this version does not have.
type UnknownPresetError struct {
	Name  string
	among []Preset // nil: those of allow and deny lists
}

func (e *UnknownPresetError) Error() string { return fmt.Sprintf("unknown preset %q", e.Name) }

// Hint returns advice for the user.
func (e *UnknownPresetError) Hint() string {
	among := e.among
	if among == nil {
		among = presets
	}
	known := make([]string, 0, len(among))
	for _, p := range among {
		known = append(known, p.Name)
	}
	fix := "known presets: " + strings.Join(known, ", ")
	if near := nearest.Of(e.Name, known); near != "" {
		fix = fmt.Sprintf("did you mean %q? %s", near, fix)
	}
	return fix
}

// ListEntry is an entry of an allow or deny list: a destination, or a preset, which
// stands for several.
type ListEntry struct {
	Preset string // the preset's name; empty for a destination
	Rules  []Rule // the destinations, at least one
}

// ParseListEntry parses an entry of an allow or deny list: the name of a preset, or
// what [ParseRule] accepts.
func ParseListEntry(entry string) (ListEntry, error) {
	if !IsPreset(entry) {
		r, err := ParseRule(entry)
		return entryOf(r), err
	}
	p, err := LookupPreset(entry)
	if err != nil {
		return ListEntry{}, err
	}
	out := ListEntry{Preset: p.Name}
	for _, h := range p.Hosts {
		r, err := ParseRule(h.Host)
		if err != nil {
			return ListEntry{}, fmt.Errorf("preset %s: %w", p.Name, err)
		}
		out.Rules = append(out.Rules, r)
	}
	return out, nil
}

// entryOf returns the entry of one destination.
func entryOf(r Rule) ListEntry { return ListEntry{Rules: []Rule{r}} }

// Each returns an entry for each destination.
func (e ListEntry) Each() []ListEntry {
	out := make([]ListEntry, len(e.Rules))
	for i, r := range e.Rules {
		out[i] = entryOf(r)
	}
	return out
}

// String returns a text that parses to the entry.
func (e ListEntry) String() string {
	if e.Preset != "" {
		return e.Preset
	}
	return e.Rules[0].String()
}

// Expand replaces the presets in a list by their hosts and returns the list sorted and
// without duplicates. Entries that are not valid stay: [Entries.Policy] reports them.
func Expand(list []string) []string {
	out := []string{}
	for _, text := range list {
		entry, err := ParseListEntry(text)
		if err != nil || entry.Preset == "" {
			out = append(out, text)
			continue
		}
		for _, one := range entry.Each() {
			out = append(out, one.String())
		}
	}
	return sortedUnique(out)
}
