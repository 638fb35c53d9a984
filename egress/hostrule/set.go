package hostrule

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Set is the rules of one host. It is safe for concurrent use.
type Set struct {
	rules []compiled
	// methods, paths and git are set if any rule has such a condition.
	methods, paths, git bool
}

type compiled struct {
	Rule
	paths, push []*regexp.Regexp
}

// Denial is a request that no rule allows.
type Denial struct {
	// Reason completes "bottle: ".
	Reason string
	// Status is the status code of the answer.
	Status int
	// Answer writes the answer in a form that the client shows its user, after it has read
	// the request's body if it must; nil: Reason as text.
	Answer func(http.ResponseWriter)
}

// NewSet returns the set of valid rules. The hosts are not looked at.
func NewSet(rules []Rule) *Set {
	s := &Set{}
	for _, r := range rules {
		s.rules = append(s.rules, compiled{Rule: r, paths: compileAll(r.Paths), push: compileAll(r.Push)})
		s.methods = s.methods || len(r.Methods) > 0 || r.Git != ""
		s.paths = s.paths || len(r.Paths) > 0 || r.Git != ""
		s.git = s.git || r.Git != ""
	}
	return s
}

// Check decides about a request; nil: it is allowed. For git it may have to read the
// beginning of the body, and replaces the body by one that begins again.
func (s *Set) Check(r *http.Request) *Denial {
	path := ""
	if s.paths {
		var err error
		if path, err = cleanPath(r); err != nil {
			return deny(http.StatusBadRequest, "ambiguous path: %v", err)
		}
	}
	if d := s.override(r); d != nil {
		return d
	}
	_, upgrade := r.Header["Upgrade"]
	if s.git && isGit(path) {
		if upgrade {
			return deny(http.StatusForbidden, "an upgrade of the git protocol is not allowed")
		}
		return s.checkGit(r, path)
	}
	for _, c := range s.rules {
		if c.allows(r.Method, path) && (c.Upgrade || !upgrade) {
			return nil
		}
	}
	if upgrade && slices.ContainsFunc(s.rules, func(c compiled) bool { return c.allows(r.Method, path) }) {
		return deny(http.StatusForbidden, "the rules for this host allow the request, but no upgrade")
	}
	return deny(http.StatusForbidden, "no rule for this host allows %s of this path", method(r.Method))
}

// allows is for requests that are not git's.
func (c compiled) allows(method, path string) bool {
	if c.Git != "" && len(c.paths) == 0 {
		return false
	}
	if method == http.MethodHead {
		method = http.MethodGet
	}
	return (len(c.Methods) == 0 || slices.Contains(c.Methods, method)) && (len(c.paths) == 0 || matchesAny(c.paths, path))
}

// method returns a client's method for a message.
func method(s string) string {
	if methodForm().MatchString(s) {
		return s
	}
	return "this method"
}

// Headers and parameters by which servers let a client replace the method, and headers by
// which they let a reverse proxy replace the path.
var (
	methodHeaders = []string{"X-Http-Method-Override", "X-Http-Method", "X-Method-Override", "X-Http-Method-Overide"}
	methodParams  = []string{"_method", "$httpmethod", "x-http-method-override", "x-http-method", "x-method-override", "_httpmethod"}
	pathHeaders   = []string{"X-Original-Url", "X-Rewrite-Url", "X-Original-Uri", "X-Forwarded-Uri", "X-Forwarded-Path", "X-Forwarded-Prefix"}
)

// override refuses a request that a server may take for another one than it is.
func (s *Set) override(r *http.Request) *Denial {
	named := func(list []string) string {
		for name := range r.Header {
			// Servers that make variables of headers do not distinguish - and _.
			canonical := http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))
			if slices.Contains(list, canonical) {
				return canonical
			}
		}
		return ""
	}
	if s.methods {
		if name := named(methodHeaders); name != "" {
			return deny(http.StatusBadRequest, "the header %s could replace the method", name)
		}
		for _, part := range strings.FieldsFunc(r.URL.RawQuery, func(c rune) bool { return c == '&' || c == ';' }) {
			key, _, _ := strings.Cut(part, "=")
			if text, err := url.QueryUnescape(key); err == nil && slices.Contains(methodParams, strings.ToLower(strings.TrimSpace(text))) {
				return deny(http.StatusBadRequest, "a parameter of the query could replace the method")
			}
		}
	}
	if s.paths {
		if name := named(pathHeaders); name != "" {
			return deny(http.StatusBadRequest, "the header %s could replace the path", name)
		}
	}
	return nil
}

func deny(status int, format string, args ...any) *Denial {
	return &Denial{Status: status, Reason: fmt.Sprintf(format, args...)}
}
