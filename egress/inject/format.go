package inject

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/bot-bottle/bottle/internal/lazyregexp"
)

const (
	lower     = "abcdefghijklmnopqrstuvwxyz"
	upper     = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits    = "0123456789"
	base62    = digits + upper + lower
	base64url = base62 + "-_"
	base32    = upper + "234567"
	hexLower  = digits + "abcdef"
)

// format describes the credentials of one issuer. The even groups of expr, counted
// from 1, are replaced by characters of alphabet; everything else is public.
type format struct {
	name     string
	expr     func() *regexp.Regexp
	alphabet string
}

// formats are tried in order. Checksums, as in GitHub's and npm's tokens, are not
// computed: no client verifies them, and scanners for leaked tokens that do should
// not take a placeholder for one.
var formats = []format{
	{"Anthropic", lazyregexp.New(`^(sk-ant-[a-z]+[0-9]{2}-)([A-Za-z0-9_-]{20,}?)(AA)?$`), base64url},
	{"OpenAI", lazyregexp.New(`^(sk-(?:proj-|svcacct-|admin-)?)([A-Za-z0-9_-]{16,})(T3BlbkFJ)([A-Za-z0-9_-]{16,})$`), base64url},
	{"OpenAI-compatible", lazyregexp.New(`^(sk-(?:[a-z]+-)*(?:v[0-9]-)?)([A-Za-z0-9_-]{20,})$`), base62},
	{"GitHub", lazyregexp.New(`^(gh[pousr]_)([A-Za-z0-9]{36,})$`), base62},
	{"GitHub fine-grained", lazyregexp.New(`^(github_pat_)([A-Za-z0-9]{22})(_)([A-Za-z0-9]{40,})$`), base62},
	{"Google", lazyregexp.New(`^(AIza)([A-Za-z0-9_-]{35})$`), base64url},
	{"Google OAuth", lazyregexp.New(`^(ya29\.(?:[a-z]0)?)([A-Za-z0-9_-]{20,})$`), base64url},
	{"npm", lazyregexp.New(`^(npm_)([A-Za-z0-9]{36,})$`), base62},
	// A macaroon begins with the name of the index, which is not secret.
	{"PyPI", lazyregexp.New(`^(pypi-[A-Za-z0-9_-]{22})([A-Za-z0-9_-]{32,})$`), base64url},
	{"GitLab", lazyregexp.New(`^(gl[a-z]+-(?:t[0-9]_)?)([A-Za-z0-9_-]{20,})$`), base64url},
	{"GitLab routable", lazyregexp.New(`^(gl[a-z]+-)([A-Za-z0-9_-]{20,})(\.[0-9]{2}\.)([0-9a-z]{9})$`), lower + digits},
	{"AWS key ID", lazyregexp.New(`^(A(?:KIA|SIA))([A-Z2-7]{16})$`), base32},
	{"Slack", lazyregexp.New(`^(xox[a-z]-)([A-Za-z0-9-]{10,})$`), base62},
	{"Hugging Face", lazyregexp.New(`^(hf_)([A-Za-z]{34})$`), upper + lower},
	{"Docker", lazyregexp.New(`^(dckr_[a-z]+_)([A-Za-z0-9_-]{20,})$`), base64url},
}

// Placeholder returns a random string in the format of a credential, so that a
// client which checks the prefix, length or alphabet of its credential accepts it.
// It has at least 64 random bits, so it occurs nowhere by chance: a value that is too
// short for that gets a longer placeholder.
func Placeholder(value string) string {
	for _, f := range formats {
		if m := f.expr().FindStringSubmatch(value); m != nil {
			return f.random(m)
		}
	}
	if p, ok := jwt(value); ok {
		return p
	}
	return similar(value)
}

// Form returns what a placeholder has in common with its value: a value of the same form can
// have the same placeholder. It is empty if only the value itself can have it.
func Form(value string) string {
	for _, f := range formats {
		m := f.expr().FindStringSubmatch(value)
		if m == nil {
			continue
		}
		form := f.name
		for i, part := range m[1:] {
			if i%2 == 0 {
				form += " " + part
			} else {
				form += " " + strconv.Itoa(len(part))
			}
		}
		return form
	}
	if _, ok := jwt(value); ok || value == "" {
		return "" // claims are copied
	}
	keep := kept(value)
	b := []byte(value)
	hex := strings.Trim(value, hexLower) == ""
	random := 0
	for i := keep; i < len(b); i++ {
		if isAlnum(b[i]) {
			random++
		}
		switch c := b[i]; {
		case hex:
			b[i] = 'f'
		case strings.IndexByte(digits, c) >= 0:
			b[i] = '0'
		case strings.IndexByte(lower, c) >= 0:
			b[i] = 'a'
		case strings.IndexByte(upper, c) >= 0:
			b[i] = 'A'
		}
	}
	if random < minRandom {
		return "" // its placeholder is longer
	}
	return string(b)
}

func (f format) random(groups []string) string {
	var b strings.Builder
	for i, part := range groups[1:] {
		if i%2 == 0 {
			b.WriteString(part)
			continue
		}
		// Not a separator at an end: word boundaries matter to some checks.
		for j := range len(part) {
			alphabet := f.alphabet
			if j == 0 || j == len(part)-1 {
				alphabet = strings.Trim(alphabet, "-_")
			}
			b.WriteByte(pick(alphabet))
		}
	}
	return b.String()
}

// keptClaims are the claims of a JWT that clients read to decide whether and where
// to use it.
var keptClaims = []string{"exp", "iat", "nbf", "iss", "aud"}

// jwt returns a placeholder for a signed token (RFC 7519). The header is kept, as
// are keptClaims; other strings in the claims may identify the user, and are replaced
// like the signature.
func jwt(value string) (string, bool) {
	parts := strings.Split(value, ".")
	if len(parts) != 3 || len(parts[2]) < 20 {
		return "", false
	}
	header, err := base64.RawURLEncoding.DecodeString(parts[0])
	if err != nil || !json.Valid(header) {
		return "", false
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", false
	}
	var claims map[string]any
	d := json.NewDecoder(strings.NewReader(string(payload)))
	d.UseNumber() // keeps large numbers as they are
	if d.Decode(&claims) != nil {
		return "", false
	}
	for name, v := range claims {
		if !slices.Contains(keptClaims, name) {
			claims[name] = replaceStrings(v)
		}
	}
	payload, err = json.Marshal(claims)
	if err != nil {
		return "", false
	}
	signature := make([]byte, len(parts[2]))
	for i := range signature {
		signature[i] = pick(base62)
	}
	return parts[0] + "." + base64.RawURLEncoding.EncodeToString(payload) + "." + string(signature), true
}

func replaceStrings(v any) any {
	switch v := v.(type) {
	case string:
		return shape(v, 0)
	case []any:
		for i := range v {
			v[i] = replaceStrings(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = replaceStrings(v[k])
		}
	}
	return v
}

// minRandom is the number of letters and digits that a placeholder replaces. Digits
// have 3.3 bits each.
const minRandom = 20

// similar returns a placeholder for a value of unknown format: letters and digits are
// replaced by ones of their kind, everything else and the first characters are kept.
func similar(value string) string {
	keep := kept(value)
	p := shape(value, keep)
	random := 0
	for i := range len(p) {
		if i >= keep && isAlnum(value[i]) {
			random++
		}
	}
	if random >= minRandom {
		return p
	}
	b := make([]byte, 24)
	for i := range b {
		b[i] = pick(base62)
	}
	return safePrefix(value[:keep]) + string(b)
}

// kept returns how many characters at the beginning of a value of unknown format are kept.
func kept(value string) int { return min(len(value)/5, 6) }

// safePrefix drops a prefix that may not be part of a header or of ASCII text.
func safePrefix(s string) string {
	for i := range len(s) {
		if !isAlnum(s[i]) {
			return s[:i]
		}
	}
	return s
}

// shape replaces the letters and digits of s after the first keep bytes by others of
// their kind.
func shape(s string, keep int) string {
	b := []byte(s)
	hex := strings.Trim(s, hexLower) == "" // stays hexadecimal
	for i := keep; i < len(b); i++ {
		switch c := b[i]; {
		case hex:
			b[i] = pick(hexLower)
		case strings.IndexByte(digits, c) >= 0:
			b[i] = pick(digits)
		case strings.IndexByte(lower, c) >= 0:
			b[i] = pick(lower)
		case strings.IndexByte(upper, c) >= 0:
			b[i] = pick(upper)
		}
	}
	return string(b)
}

func isAlnum(c byte) bool { return strings.IndexByte(base62, c) >= 0 }

// pick returns a random character of an alphabet, without bias.
func pick(alphabet string) byte {
	n, err := rand.Int(rand.Reader, big.NewInt(int64(len(alphabet))))
	if err != nil {
		panic(err) // crypto/rand never fails on Linux
	}
	return alphabet[n.Int64()]
}
