// Package names derives the names of bottles and their containers from agent names. A
// bottle is identified by its name alone.
package names

import (
	"fmt"
	"strings"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/lazyregexp"
)

// MaxSuffix is the highest number that distinguishes the bottles of one agent:
// claude-bottle-impl, claude-bottle-impl-2 … claude-bottle-impl-99.
const MaxSuffix = 99

// Suffixes of the names of a bottle's other containers. They have the same length.
const (
	ProxySuffix = ".proxy"
	// FrontSuffix is that of the process in front of pipelock, which inserts secrets.
	FrontSuffix = ".front"
)

// maxIdentifier is containerd's limit on an identifier, in bytes (containerd
// pkg/identifiers). The proxy's identifier is the longest one derived from a name.
const (
	maxIdentifier = 76
	maxName       = maxIdentifier - len(ProxySuffix)
	maxSlug       = maxName - len(Prefix) - len("-99")
)

// Unusable must not be in a bottle's name, in its namespace or in the path of its
// directory: `runsc exec --detach` starts itself without the arguments that contain this
// (gVisor runsc/cmd/exec.go, execChildAndWait), and so without the name of the sandbox.
const Unusable = "detach"

// Slug converts an agent name to its part of a bottle name: lower case, with a dash for
// each sequence of characters that are not ASCII letters or digits.
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
			Err:  fmt.Errorf("invalid agent name %.100q: no letter from a to z and no digit", agent),
			Hint: "add a letter from a to z or a digit",
		}
	case len(slug) > maxSlug:
		return "", &hint.Error{
			Err:  fmt.Errorf("agent name %.100q is too long: %d characters in a bottle name (max %d)", agent, len(slug), maxSlug),
			Hint: "give the agent a shorter name",
		}
	}
	return slug, nil
}

// Free returns the first name for a bottle of agent that is not taken.
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
		Err:  fmt.Errorf("no free bottle name for agent %s: all %d are taken (%s to %s-%d)", agent, MaxSuffix, base, base, MaxSuffix),
		Hint: "remove unused bottles with bottle cleanup",
	}
}

// identifier is containerd's rule for names (containerd pkg/identifiers).
var identifier = lazyregexp.New(`^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$`)

// CheckPinned checks whether a requested name can be used.
func CheckPinned(name string, taken map[string]bool) error {
	switch {
	case len(name) > maxName:
		return &hint.Error{
			Err:  fmt.Errorf("bottle name %q is too long: %d characters (max %d)", name, len(name), maxName),
			Hint: "choose a shorter name with --name or CLAUDE_BOTTLE_CONTAINER",
		}
	case !identifier().MatchString(name), Bottle(name) != name, strings.HasSuffix(name, WorkSuffix):
		return &hint.Error{
			Err:  fmt.Errorf("invalid bottle name %q", name),
			Hint: "use letters and digits, with single dots, dashes and underscores between them, and none of " + ProxySuffix + ", " + FrontSuffix + " and " + WorkSuffix + " at the end",
		}
	case Owner(name) != 0:
		return &hint.Error{
			Err:  fmt.Errorf("invalid bottle name %q: the end is reserved for the owners of bottles", name),
			Hint: "choose a name that does not end with a dot, a u and a number",
		}
	case taken[name], taken[name+ProxySuffix]:
		return &hint.Error{
			Err:  fmt.Errorf("bottle name %s is taken", name),
			Hint: fmt.Sprintf("remove that bottle with bottle rm -f %s, or choose another name with --name or CLAUDE_BOTTLE_CONTAINER", name),
		}
	}
	return nil
}

// Prefix begins the name of every bottle that is not pinned.
const Prefix = "claude-bottle-"

// maxHostname is Linux's limit on a host name, in bytes (uname(2)).
const maxHostname = 64

// Hostname returns the host name of a bottle: its name without the owner, shortened to the kernel's limit.
func Hostname(name string) string {
	name = Bare(name)
	if len(name) > maxHostname {
		return name[:maxHostname]
	}
	return name
}

// WorkSuffix is appended to a bottle's name to form the container ID of the sandbox over
// its workspace while the bottle is not running. It is not longer than ProxySuffix.
const WorkSuffix = ".work"

// Work returns the container ID of the sandbox over a bottle's workspace.
func Work(name string) string { return name + WorkSuffix }

// Proxy returns the identifier of a bottle's proxy container.
func Proxy(name string) string { return name + ProxySuffix }

// Front returns the identifier of the container in front of a bottle's proxy.
func Front(name string) string { return name + FrontSuffix }

// Bottle returns the name of the bottle that has a container.
func Bottle(id string) string {
	return strings.TrimSuffix(strings.TrimSuffix(id, ProxySuffix), FrontSuffix)
}

// Short returns a bottle's name without the prefix and the owner.
func Short(name string) string { return strings.TrimPrefix(Bare(name), Prefix) }
