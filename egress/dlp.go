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

// secretForms are what credentials look like whose issuers gave them a form of
// their own, so that ordinary text is not taken for one. Letter case does not
// count, because a host name has none.
var secretForms = []struct{ name, form string }{
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

// anySecret has one group for each of secretForms.
var anySecret = func() *regexp.Regexp {
	groups := make([]string, len(secretForms))
	for i, s := range secretForms {
		groups[i] = "(" + s.form + ")"
	}
	return regexp.MustCompile("(?i)" + strings.Join(groups, "|"))
}()

// secretIn names the kind of the first secret in a text; empty if there is none.
func secretIn(text string) string {
	groups := anySecret.FindStringSubmatchIndex(text)
	for i := range secretForms {
		if at := 2 * (i + 1); at < len(groups) && groups[at] >= 0 {
			return secretForms[i].name
		}
	}
	return ""
}

// maskSecrets takes out of a text what a log must not keep. Of one that hides it
// by encoding nothing is left but the host.
func maskSecrets(text string) string {
	if len(text) < 16 { // shorter than any of them
		return text
	}
	text = anySecret.ReplaceAllString(text, "***")
	if !hidesSecret(text) {
		return text
	}
	if scheme, rest, ok := strings.Cut(text, "://"); ok {
		if authority, _, _ := strings.Cut(rest, "/"); !hidesSecret(scheme + authority) {
			return scheme + "://" + authority + "/***"
		}
	}
	return "***"
}

func hidesSecret(text string) bool {
	return slices.ContainsFunc(decodings(text)[1:], func(s string) bool { return secretIn(s) != "" })
}

// maxURL is the length of the longest URL that is forwarded, in bytes; the same
// that pipelock is told.
const maxURL = 8192

// leaks looks for secrets in what is visible of a plain request: its URL, as it
// is and decoded, and its headers. Bodies are not looked at.
func leaks(r *http.Request) *refusalError {
	if len(r.RequestURI) > maxURL {
		return &refusalError{
			status: http.StatusForbidden, scanner: "length",
			reason: fmt.Sprintf("the URL is longer than %d bytes", maxURL),
		}
	}
	for _, text := range decodings(r.RequestURI) {
		if kind := secretIn(text); kind != "" {
			return leak("the URL", kind)
		}
	}
	for name, values := range r.Header {
		for _, value := range values {
			for _, text := range append(decodings(value), basicAuth(value)) {
				if kind := secretIn(text); kind != "" {
					return leak("the header "+shorten(name), kind)
				}
			}
		}
	}
	return nil
}

func leak(where, kind string) *refusalError {
	return &refusalError{
		status: http.StatusForbidden, scanner: "dlp",
		reason: fmt.Sprintf("%s holds what looks like %s, and plain HTTP would show it: use https", where, kind),
	}
}

// decodings are a text and what it is once and twice percent-decoded.
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

// unescape is percent-decoding that leaves what is not an escape as it is, as
// many servers do.
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

// basicAuth is what the credentials of "Basic …" stand for (RFC 7617).
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
