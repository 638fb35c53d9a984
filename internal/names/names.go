package names

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/bot-bottle/bottle/internal/hint"
)

// MaxSuffix is the highest number that tells the bottles of one agent apart:
// claude-bottle-impl, claude-bottle-impl-2 … claude-bottle-impl-99.
const MaxSuffix = 99

// ProxySuffix ends the name of a bottle's proxy container.
const ProxySuffix = ".proxy"

// maxIdentifier is containerd's limit on an identifier, in bytes (containerd
// pkg/identifiers). The proxy's identifier is the longest made of a name.
const (
	maxIdentifier = 76
	maxName       = maxIdentifier - len(ProxySuffix)
	maxSlug       = maxName - len(Prefix) - len("-99")
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
			Err:  fmt.Errorf("the agent's name %.100q has no letter or digit to make a bottle's name of", agent),
			Hint: "give the agent a name with a letter from a to z or a digit",
		}
	case len(slug) > maxSlug:
		return "", &hint.Error{
			Err:  fmt.Errorf("the agent's name %.100q is too long: it makes %d characters of a bottle's name, and %d is the most", agent, len(slug), maxSlug),
			Hint: "give the agent a shorter name",
		}
	}
	return slug, nil
}

// FreeName returns the first name for a bottle of agent that is not taken.
func Free(agent string, taken map[string]bool) (string, error) {
	slug, err := Slug(agent)
	if err != nil {
		return "", err
	}
	base := Prefix + slug
	for n := 1; n <= MaxSuffix; n++ {
		name := base
		if n > 1 {
			name = fmt.Sprintf("%s-%d", base, n)
		}
		if !taken[name] && !taken[name+ProxySuffix] {
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
func CheckPinned(name string, taken map[string]bool) error {
	switch {
	case len(name) > maxName:
		return &hint.Error{
			Err:  fmt.Errorf("the name %q has %d characters, and %d is the most", name, len(name), maxName),
			Hint: "choose a shorter one with --name or CLAUDE_BOTTLE_CONTAINER",
		}
	case !identifier.MatchString(name), strings.HasSuffix(name, ProxySuffix):
		return &hint.Error{
			Err:  fmt.Errorf("%q cannot be a bottle's name", name),
			Hint: "use letters and digits, with single dots, dashes and underscores between them, and no " + ProxySuffix + " at the end",
		}
	case taken[name], taken[name+ProxySuffix]:
		return &hint.Error{
			Err:  fmt.Errorf("the name %s is taken", name),
			Hint: fmt.Sprintf("remove what has it with bottle rm -f %s, or choose another with --name or CLAUDE_BOTTLE_CONTAINER", name),
		}
	}
	return nil
}

// NamePrefix begins the name of every bottle that is not pinned.
const Prefix = "claude-bottle-"

// maxHostname is Linux's limit on a host name, in bytes (uname(2)).
const maxHostname = 64

func Hostname(name string) string {
	if len(name) > maxHostname {
		return name[:maxHostname]
	}
	return name
}

// proxyID is the container's.
func Proxy(name string) string { return name + ProxySuffix }
