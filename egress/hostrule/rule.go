package hostrule

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/internal/lazyregexp"
)

// Values of [Rule.Git].
const (
	GitRead  = "read"  // fetch and clone
	GitWrite = "write" // and push
)

// Rule allows requests to one host. Its parts are conditions that a request has to meet
// together; a request has to meet one of a host's rules.
type Rule struct {
	// Host is a DNS name with an optional port (443).
	Host string `json:"host"`
	// Methods are the permitted methods, in upper case; none: all. GET includes HEAD.
	Methods []string `json:"methods,omitempty"`
	// Paths are patterns of permitted paths; none: all. In a pattern * stands for any text
	// without a slash, and ** for any text.
	Paths []string `json:"paths,omitempty"`
	// Upgrade permits a change of protocol, as for a websocket.
	Upgrade bool `json:"upgrade,omitempty"`
	// Git permits the git protocol and Git LFS: [GitRead] or [GitWrite]. The host's other
	// paths are refused then, unless Paths permits them.
	Git string `json:"git,omitempty"`
	// Repos are the repositories for Git, such as me/x; none: all. A repository has the
	// path /me/x or /me/x.git.
	Repos []string `json:"repos,omitempty"`
	// Push are patterns of the refs that a push may create, change and delete; none: all.
	Push []string `json:"push,omitempty"`
}

// Bounds of a rule's parts, which bound what a comparison costs.
const (
	maxPattern  = 512 // bytes
	maxPatterns = 256 // of one list
)

var (
	methodForm = lazyregexp.New(`^[A-Z][A-Z_-]{0,31}$`)
	repoForm   = lazyregexp.New(`^[A-Za-z0-9_~.+-]+(/[A-Za-z0-9_~.+-]+)*$`)
)

// Check returns the first error in a rule, except errors in the host name.
func (r Rule) Check() error {
	for _, list := range []struct {
		name   string
		values []string
		check  func(string) error
	}{
		{"methods", r.Methods, CheckMethod},
		{"paths", r.Paths, CheckPath},
		{"repos", r.Repos, CheckRepo},
		{"push", r.Push, CheckRef},
	} {
		if len(list.values) > maxPatterns {
			return fmt.Errorf("too many entries in %s: %d (max %d)", list.name, len(list.values), maxPatterns)
		}
		for _, v := range list.values {
			if len(v) > maxPattern {
				return fmt.Errorf("entry in %s is too long: %d bytes (max %d)", list.name, len(v), maxPattern)
			}
			if err := list.check(v); err != nil {
				return err
			}
		}
	}
	return r.checkParts()
}

func (r Rule) checkParts() error {
	switch {
	case r.Git != "" && r.Git != GitRead && r.Git != GitWrite:
		return fmt.Errorf("invalid git %q: expected read or write", r.Git)
	case r.Git == GitRead && len(r.Push) > 0:
		return errors.New("push with git: read, which permits no push")
	case r.Git == "" && len(r.Push) > 0:
		return errors.New("push without git: write")
	case r.Git == "" && len(r.Repos) > 0:
		return errors.New("repos without git: read or git: write")
	case r.Git != "" && len(r.Paths) == 0 && (len(r.Methods) > 0 || r.Upgrade):
		return errors.New("methods or upgrade with git, but without paths that they are for")
	case r.Git == "" && len(r.Methods) == 0 && len(r.Paths) == 0:
		return errors.New("missing methods, paths or git")
	case r.Upgrade && len(r.Methods) > 0 && !slices.Contains(r.Methods, "GET"):
		return errors.New("upgrade without the method GET, which begins every upgrade")
	}
	return nil
}

// CheckMethod returns an error for an invalid entry of methods.
func CheckMethod(s string) error {
	if !methodForm().MatchString(s) || s == "CONNECT" {
		return fmt.Errorf("invalid method %q: expected one in upper case, such as GET", s)
	}
	return nil
}

// CheckRepo returns an error for an invalid entry of repos.
func CheckRepo(s string) error {
	switch {
	case !repoForm().MatchString(s):
		return fmt.Errorf("invalid repository %q: expected a path such as me/x, without wildcards", s)
	case strings.HasSuffix(s, ".git"):
		return fmt.Errorf("invalid repository %q: write it without .git, which is permitted either way", s)
	case slices.ContainsFunc(strings.Split(s, "/"), isDots):
		return fmt.Errorf("invalid repository %q: has a dot segment", s)
	}
	return nil
}

func isDots(segment string) bool { return segment == "." || segment == ".." }

// String describes the rule in one line.
func (r Rule) String() string {
	var parts []string
	add := func(prefix string, values []string) {
		if len(values) > 0 {
			parts = append(parts, prefix+strings.Join(values, " "))
		}
	}
	if r.Git != "" {
		parts = append(parts, "git "+r.Git)
		add("", r.Repos)
		add("push ", r.Push)
	}
	add("", r.Methods)
	add("", r.Paths)
	if r.Upgrade {
		parts = append(parts, "upgrade")
	}
	return fmt.Sprintf("%s (%s)", r.Host, strings.Join(parts, "; "))
}
