package egress

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// secretPatterns match credentials whose issuers use a distinctive format, so
// that ordinary text is not mistaken for one. Matching ignores case, because
// host names are case-insensitive.
var secretPatterns = []struct{ name, expr string }{
	{"an Anthropic key", `sk-ant-[a-z0-9_-]{20,}`},
	{"an OpenAI key", `sk-(?:proj|svcacct|admin)-[a-z0-9_-]{20,}|\bsk-[a-z0-9]{40,}`},
	{"a GitHub token", `gh[pousr]_[a-z0-9]{36,}|github_pat_[a-z0-9_]{22,}`},
	{"a GitLab token", `glpat-[a-z0-9_-]{20,}`},
	{"an AWS key", `\b(?:akia|asia)[a-z0-9]{16}\b`},
	{"a Google key", `aiza[a-z0-9_-]{35}`},
	{"a Slack token", `xox[abprs]-[a-z0-9-]{10,}`},
	{"a Stripe key", `\b[sr]k_live_[a-z0-9]{20,}`},
	{"an npm token", `\bnpm_[a-z0-9]{36}`},
	{"a Hugging Face token", `\bhf_[a-z0-9]{34}`},
	{"a signed token (JWT)", `eyj[a-z0-9_-]{10,}\.eyj[a-z0-9_-]{10,}\.[a-z0-9_-]{10,}`},
	{"a private key", `-----begin [a-z ]*private key-----`},
}

// anySecret has one group for each of secretPatterns.
var anySecret = func() *regexp.Regexp {
	groups := make([]string, len(secretPatterns))
	for i, s := range secretPatterns {
		groups[i] = "(" + s.expr + ")"
	}
	return regexp.MustCompile("(?i)" + strings.Join(groups, "|"))
}()

// secretIn returns the kind of the first secret in a text, or "".
func secretIn(text string) string {
	groups := anySecret.FindStringSubmatchIndex(text)
	for i := range secretPatterns {
		if at := 2 * (i + 1); at < len(groups) && groups[at] >= 0 {
			return secretPatterns[i].name
		}
	}
	return ""
}

// maskSecrets removes secrets from a text before it is logged. If a secret is
// percent-encoded, everything but the host of the URL is removed.
func maskSecrets(text string) string {
	if len(text) < 16 { // shorter than every pattern
		return text
	}
	text = anySecret.ReplaceAllString(text, "***")
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
	return slices.ContainsFunc(decodings(text)[1:], func(s string) bool { return secretIn(s) != "" })
}

// maxURL is the maximum length of a forwarded URL in bytes, the same as in
// pipelock's configuration.
const maxURL = 8192

// scanRequest searches a plain request's URL, raw and decoded, and its headers
// for secrets. Bodies are not scanned.
func scanRequest(r *http.Request) *refusalError {
	if len(r.RequestURI) > maxURL {
		return &refusalError{
			status: http.StatusForbidden, scanner: "length",
			reason: fmt.Sprintf("URL is longer than %d bytes", maxURL),
		}
	}
	for _, text := range decodings(r.RequestURI) {
		if kind := secretIn(text); kind != "" {
			return leakRefusal("URL", kind)
		}
	}
	for name, values := range r.Header {
		for _, value := range values {
			for _, text := range append(decodings(value), basicAuth(value)) {
				if kind := secretIn(text); kind != "" {
					return leakRefusal("header "+shorten(name), kind)
				}
			}
		}
	}
	return nil
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

// basicAuth returns the decoded credentials of "Basic …" (RFC 7617), or "".
func basicAuth(value string) string {
	scheme, rest, _ := strings.Cut(value, " ")
	if !strings.EqualFold(scheme, "Basic") {
		return ""
	}
	data, err := base64.StdEncoding.DecodeString(strings.TrimSpace(rest))
	if err != nil {
		return ""
	}
	return string(data)
}
