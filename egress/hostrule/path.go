package hostrule

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/bot-bottle/bottle/internal/lazyregexp"
)

// maxPath is the longest path that is compared, in bytes.
const maxPath = 8 << 10

// cleanPath returns the decoded path of a request, or an error if servers could understand
// it in several ways.
func cleanPath(r *http.Request) (string, error) {
	raw, _, _ := strings.Cut(r.RequestURI, "?")
	path, err := decodePath(raw)
	if err == nil && path != r.URL.Path {
		err = errors.New("it has two readings")
	}
	return path, err
}

// decodePath decodes a path as it was sent.
func decodePath(raw string) (string, error) {
	switch {
	case !strings.HasPrefix(raw, "/"):
		return "", errors.New("it does not begin with a slash")
	case len(raw) > maxPath:
		return "", fmt.Errorf("it is longer than %d bytes", maxPath)
	}
	for i := range len(raw) {
		if c := raw[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`\;#"<>^{|}`+"`", c) >= 0 {
			return "", fmt.Errorf("it contains %q", c)
		}
	}
	path, err := url.PathUnescape(raw)
	if err != nil {
		return "", errors.New("it has an invalid escape")
	}
	if !utf8.ValidString(path) {
		return "", errors.New("it is not UTF-8")
	}
	// What was decoded must not change the structure, also for who decodes it again.
	if strings.Count(path, "/") != strings.Count(raw, "/") {
		return "", errors.New("it contains an escaped slash")
	}
	if needless().MatchString(raw) {
		return "", errors.New("it contains an escape of a character that needs none")
	}
	if i := strings.IndexFunc(path, func(c rune) bool { return c < ' ' || c == 0x7f || strings.ContainsRune(`%\;?#`, c) }); i >= 0 {
		return "", fmt.Errorf("it contains %q", path[i])
	}
	return path, checkSegments(path)
}

// needless matches escapes of dots, letters and digits, and of - and _. No client writes
// them unless it wants to be understood in two ways.
var needless = lazyregexp.New(`%(?:2[dDeE]|3[0-9]|[46][1-9a-fA-F]|[57][0-9aA]|5[fF])`)

// checkSegments refuses what a server may remove from a path.
func checkSegments(path string) error {
	segments := strings.Split(path[1:], "/")
	switch {
	case slices.ContainsFunc(segments, isDots):
		return errors.New("it has a dot segment")
	case slices.Contains(segments[:len(segments)-1], ""):
		return errors.New("it has an empty segment")
	}
	return nil
}

// CheckPath returns an error for an entry of paths that no path can match.
func CheckPath(s string) error {
	bad := func(why string) error { return fmt.Errorf("invalid path %q: %s", s, why) }
	switch {
	case !strings.HasPrefix(s, "/"):
		return bad("expected one that begins with a slash")
	case strings.ContainsAny(s, "?#"):
		return bad("queries are not part of it")
	case strings.Contains(s, "***"):
		return bad("expected * or **")
	case !utf8.ValidString(s) || strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c == 0x7f || strings.ContainsRune(`%\;`, c) }):
		return bad(`write it decoded, without any of % \ ;`)
	}
	if err := checkSegments(s); err != nil {
		return bad(err.Error())
	}
	return nil
}

// compile returns an expression for a pattern. Its cost is linear in the text.
func compile(pattern string) *regexp.Regexp {
	var b strings.Builder
	b.WriteString(`(?s)\A`)
	for i, part := range strings.Split(pattern, "**") {
		if i > 0 {
			b.WriteString(`.*`)
		}
		for j, text := range strings.Split(part, "*") {
			if j > 0 {
				b.WriteString(`[^/]*`)
			}
			b.WriteString(regexp.QuoteMeta(text))
		}
	}
	b.WriteString(`\z`)
	return regexp.MustCompile(b.String()) // every pattern is a valid expression
}

func compileAll(patterns []string) []*regexp.Regexp {
	var out []*regexp.Regexp
	for _, p := range patterns {
		out = append(out, compile(p))
	}
	return out
}

func matchesAny(patterns []*regexp.Regexp, s string) bool {
	return slices.ContainsFunc(patterns, func(p *regexp.Regexp) bool { return p.MatchString(s) })
}
