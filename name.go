package bottle

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/runtime"
)

// MaxSuffix is the highest number that tells the bottles of one agent apart:
// claude-bottle-impl, claude-bottle-impl-2 … claude-bottle-impl-99.
const MaxSuffix = 99

// maxIdentifier is containerd's limit on an identifier, in bytes (containerd
// pkg/identifiers). The proxy's identifier is the longest made of a name.
const (
	maxIdentifier = 76
	maxName       = maxIdentifier - len(runtime.ProxySuffix)
	maxSlug       = maxName - len(NamePrefix) - len("-99")
)

// Slug makes of an agent's name the part of a bottle's name that tells it:
// lower case, and everything but letters and digits of ASCII to one dash.
func Slug(agent string) (string, error) {
	var b strings.Builder
	for _, r := range strings.ToLower(agent) {
		switch {
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
	}
	slug := strings.TrimSuffix(b.String(), "-")
	switch {
	case slug == "":
		return "", &hint.Error{
			Err:  fmt.Errorf("the agent's name %s has no letter or digit to make a bottle's name of", quoted(agent)),
			Hint: "give the agent a name with a letter from a to z or a digit",
		}
	case len(slug) > maxSlug:
		return "", &hint.Error{
			Err:  fmt.Errorf("the agent's name %s is too long: it makes %d characters of a bottle's name, and %d is the most", quoted(agent), len(slug), maxSlug),
			Hint: "give the agent a shorter name",
		}
	}
	return slug, nil
}

// FreeName returns the first name for a bottle of agent that is not taken.
func FreeName(agent string, taken map[string]bool) (string, error) {
	slug, err := Slug(agent)
	if err != nil {
		return "", err
	}
	base := NamePrefix + slug
	for n := 1; n <= MaxSuffix; n++ {
		name := base
		if n > 1 {
			name = fmt.Sprintf("%s-%d", base, n)
		}
		if !taken[name] && !taken[name+runtime.ProxySuffix] {
			return name, nil
		}
	}
	return "", &hint.Error{
		Err:  fmt.Errorf("all %d names for bottles of %s are taken (%s to %s-%d)", MaxSuffix, agent, base, base, MaxSuffix),
		Hint: "remove those that are no longer needed with bottle cleanup",
	}
}

// identifier is containerd's rule for names (containerd pkg/identifiers).
var identifier = regexp.MustCompile(`^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$`)

// checkPinned tells whether a name that was asked for can be used.
func checkPinned(name string, taken map[string]bool) error {
	switch {
	case len(name) > maxName:
		return &hint.Error{
			Err:  fmt.Errorf("the name %q has %d characters, and %d is the most", name, len(name), maxName),
			Hint: "choose a shorter one with --name or CLAUDE_BOTTLE_CONTAINER",
		}
	case !identifier.MatchString(name), strings.HasSuffix(name, runtime.ProxySuffix):
		return &hint.Error{
			Err:  fmt.Errorf("%q cannot be a bottle's name", name),
			Hint: "use letters and digits, with single dots, dashes and underscores between them, and no " + runtime.ProxySuffix + " at the end",
		}
	case taken[name], taken[name+runtime.ProxySuffix]:
		return &hint.Error{
			Err:  fmt.Errorf("the name %s is taken", name),
			Hint: fmt.Sprintf("remove what has it with bottle rm -f %s, or choose another with --name or CLAUDE_BOTTLE_CONTAINER", name),
		}
	}
	return nil
}

// ValidEnvName tells whether name can be a variable's: letters, digits and
// underscores of ASCII, no digit first (POSIX.1-2024, 3.216 Name).
func ValidEnvName(name string) bool { return envName.MatchString(name) }

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// nearest returns the candidate that a mistyped word most likely meant, or
// nothing: one that a third of its letters, at most, would have to change. As
// comparing takes time, words longer than any identifier are nobody's mistyped
// ones, and not all of very many candidates are looked at.
func nearest(word string, candidates []string) string {
	if len(word) > maxIdentifier {
		return ""
	}
	best, bestDistance := "", len(word)/3+1
	compared := 0 // pairs of letters
	for _, c := range candidates {
		if max(len(c)-len(word), len(word)-len(c)) > bestDistance {
			continue // so many letters, at least, have to come or go
		}
		if compared += len(word) * len(c); compared > maxCompared {
			break
		}
		if d := distance(strings.ToLower(word), strings.ToLower(c)); d <= bestDistance && d < len(c) {
			if d < bestDistance || best == "" {
				best, bestDistance = c, d
			}
		}
	}
	return best
}

// maxCompared is how many pairs of letters a search for the nearest word compares:
// thousands of candidates, unless they are very long.
const maxCompared = 1 << 20

// distance is Levenshtein's: the least number of letters to insert, delete or
// replace.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
