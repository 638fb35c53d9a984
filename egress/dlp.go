package egress

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"iter"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/bot-bottle/bottle/internal/lazyregexp"
)

// secretPattern matches credentials of one kind.
type secretPattern struct {
	name string
	// literals are parts that the credential has, in lower case: the expression
	// is only tried on text with one of them, because it is slow.
	literals []string
	expr     func() *regexp.Regexp
}

// secretPatterns match credentials whose issuers use a distinctive format, so
// that ordinary text is not mistaken for one. Matching ignores case, because
// host names are case-insensitive.
var secretPatterns = []secretPattern{
	secret("an Anthropic key", lazyregexp.New(`(?i)sk-ant-[a-z0-9_-]{20,}`), "sk-ant-"),
	secret("an OpenAI key", lazyregexp.New(`(?i)sk-(?:proj|svcacct|admin)-[a-z0-9_-]{20,}|\bsk-[a-z0-9]{40,}`), "sk-"),
	secret("a GitHub token", lazyregexp.New(`(?i)gh[pousr]_[a-z0-9]{36,}|github_pat_[a-z0-9_]{22,}`), "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
	secret("a GitLab token", lazyregexp.New(`(?i)glpat-[a-z0-9_-]{20,}`), "glpat-"),
	secret("an AWS key", lazyregexp.New(`(?i)\b(?:akia|asia)[a-z0-9]{16}\b`), "akia", "asia"),
	secret("a Google key", lazyregexp.New(`(?i)aiza[a-z0-9_-]{35}`), "aiza"),
	secret("a Slack token", lazyregexp.New(`(?i)xox[abprs]-[a-z0-9-]{10,}`), "xox"),
	secret("a Stripe key", lazyregexp.New(`(?i)\b[sr]k_live_[a-z0-9]{20,}`), "k_live_"),
	secret("a SendGrid key", lazyregexp.New(`(?i)\bsg\.[a-z0-9_-]{22}\.[a-z0-9_-]{43}`), "sg."),
	secret("an npm token", lazyregexp.New(`(?i)\bnpm_[a-z0-9]{36}`), "npm_"),
	secret("a Hugging Face token", lazyregexp.New(`(?i)\bhf_[a-z0-9]{34}`), "hf_"),
	secret("a signed token (JWT)", lazyregexp.New(`(?i)eyj[a-z0-9_-]{10,}\.eyj[a-z0-9_-]{10,}\.[a-z0-9_-]{10,}`), "eyj"),
	secret("a private key", lazyregexp.New(`(?i)-----begin [a-z ]*private key-----`), "private key-----"),
}

// minSecret is the length of the shortest credential that any pattern matches.
const minSecret = 15

func secret(name string, expr func() *regexp.Regexp, literals ...string) secretPattern {
	return secretPattern{name: name, literals: literals, expr: expr}
}

// asciiLower is strings.ToLower for the letters of the patterns. It is fast for
// binary data, too.
func asciiLower(text string) string {
	b := []byte(text)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// in reports whether a text, given in lower case, may have the credential.
func (s secretPattern) in(lower string) bool {
	return slices.ContainsFunc(s.literals, func(l string) bool { return strings.Contains(lower, l) })
}

// secretIn returns the kind of a secret in a text, or "".
func secretIn(text string) string {
	if len(text) < minSecret {
		return ""
	}
	lower := asciiLower(text)
	for _, s := range secretPatterns {
		if s.in(lower) && s.expr().MatchString(text) {
			return s.name
		}
	}
	return ""
}

// maskSecrets removes secrets from a text before it is logged. If a secret is
// encoded, everything but the host of the URL is removed.
func maskSecrets(text string) string {
	if len(text) < minSecret {
		return text
	}
	lower := asciiLower(text)
	for _, s := range secretPatterns {
		if s.in(lower) {
			text = s.expr().ReplaceAllString(text, "***")
		}
	}
	if !hasEncodedSecret(text) {
		return text
	}
	if scheme, rest, ok := strings.Cut(text, "://"); ok {
		if authority, _, _ := strings.Cut(rest, "/"); !hasEncodedSecret(scheme + authority) {
			return scheme + "://" + authority + "/***"
		}
	}
	return "***"
}

func hasEncodedSecret(text string) bool {
	for i, s := range decodings(text) {
		if i > 0 && secretIn(s) != "" || encodedSecretIn(s) != "" {
			return true
		}
	}
	return false
}

// maxURL is the maximum length of a forwarded URL in bytes, the same as in
// pipelock's configuration.
const maxURL = 8192

// scanRequest searches a plain request's URL and its headers for secrets, as they
// are and decoded. Bodies are not scanned.
func scanRequest(r *http.Request) *refusalError {
	if kind := anySecretIn(r.RequestURI); kind != "" {
		return leakRefusal("URL", kind)
	}
	for name, values := range r.Header {
		for _, value := range values {
			if kind := anySecretIn(value); kind != "" {
				return leakRefusal("header "+shorten(name), kind)
			}
		}
	}
	return nil
}

// anySecretIn is secretIn for a text, and for what it decodes to.
func anySecretIn(text string) string {
	for _, s := range decodings(text) {
		if kind := secretIn(s); kind != "" {
			return kind
		}
		if kind := encodedSecretIn(s); kind != "" {
			return kind
		}
	}
	return ""
}

// secretInHost is secretIn for a host name, and for its hexadecimal parts. Base64
// does not survive there: names have no letter case.
func secretInHost(host string) string {
	if kind := secretIn(host); kind != "" {
		return kind
	}
	return hexSecretIn(host)
}

func leakRefusal(where, kind string) *refusalError {
	return &refusalError{
		status: http.StatusForbidden, scanner: "dlp",
		reason: fmt.Sprintf("%s contains what looks like %s, which plain HTTP would expose: use https", where, kind),
	}
}

// decodings returns a text as it is, percent-decoded once, and twice.
func decodings(text string) []string {
	out := []string{text}
	for range 2 {
		if !strings.Contains(text, "%") {
			break
		}
		text = unescape(text)
		out = append(out, text)
	}
	return out
}

// unescape decodes percent escapes and keeps invalid ones unchanged, as many
// servers do.
func unescape(text string) string {
	var b strings.Builder
	for rest := text; rest != ""; {
		before, after, found := strings.Cut(rest, "%")
		b.WriteString(before)
		if rest = after; !found {
			break
		}
		if code, err := strconv.ParseUint(after[:min(2, len(after))], 16, 8); err == nil && len(after) >= 2 {
			b.WriteByte(byte(code))
			rest = after[2:]
		} else {
			b.WriteByte('%')
		}
	}
	return b.String()
}

// encodedSecretIn returns the kind of a secret that a text has in base64 (RFC 4648,
// either alphabet) or in hexadecimal, or "".
func encodedSecretIn(text string) string {
	for run := range runs(text, base64.RawStdEncoding.EncodedLen(minSecret), isBase64) {
		if kind := base64SecretIn(run); kind != "" {
			return kind
		}
	}
	return hexSecretIn(text)
}

// base64SecretIn decodes a run of base64 characters from each of the four places
// where a group of them may begin: what comes before may be a part of a path.
func base64SecretIn(run string) string {
	std := strings.NewReplacer("-", "+", "_", "/").Replace(run)
	for i := range 4 {
		group := std[i:]
		if len(group)%4 == 1 {
			group = group[:len(group)-1] // not a byte
		}
		data, err := base64.RawStdEncoding.DecodeString(group)
		if err != nil {
			continue
		}
		if kind := secretIn(string(data)); kind != "" {
			return kind
		}
	}
	return ""
}

// hexSecretIn ignores dots: a label of a host name is too short for most secrets.
func hexSecretIn(text string) string {
	for run := range runs(strings.ReplaceAll(text, ".", ""), hex.EncodedLen(minSecret), isHex) {
		for i := range 2 {
			pairs := run[i:]
			data, err := hex.DecodeString(pairs[:len(pairs)&^1])
			if err != nil {
				continue
			}
			if kind := secretIn(string(data)); kind != "" {
				return kind
			}
		}
	}
	return ""
}

// runs yields the longest runs of bytes of a class that have at least n.
func runs(text string, n int, class func(byte) bool) iter.Seq[string] {
	return func(yield func(string) bool) {
		start := 0
		for i := 0; i <= len(text); i++ {
			if i < len(text) && class(text[i]) {
				continue
			}
			if i-start >= n && !yield(text[start:i]) {
				return
			}
			start = i + 1
		}
	}
}

func isBase64(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '+' || c == '/' || c == '-' || c == '_'
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}
