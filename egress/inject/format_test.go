package inject

import (
	"encoding/base64"
	"encoding/json"
	"regexp"
	"strings"
	"testing"
)

func fill(n int, alphabet string) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = pick(alphabet)
	}
	return string(b)
}

func TestPlaceholderFormats(t *testing.T) {
	for _, tc := range []struct{ name, value, expr string }{
		{"Anthropic key", "sk-ant-api03-" + fill(93, base64url) + "AA", `^sk-ant-api03-[\w-]{93}AA$`},
		{"Claude OAuth", "sk-ant-oat01-" + fill(93, base64url) + "AA", `^sk-ant-oat01-[\w-]{93}AA$`},
		{"OpenAI project", "sk-proj-" + fill(74, base64url) + "T3BlbkFJ" + fill(74, base64url), `^sk-proj-[\w-]{74}T3BlbkFJ[\w-]{74}$`},
		{"OpenAI", "sk-" + fill(20, base62) + "T3BlbkFJ" + fill(20, base62), `^sk-\w{20}T3BlbkFJ\w{20}$|^sk-[\w-]{20}T3BlbkFJ[\w-]{20}$`},
		{"OpenRouter", "sk-or-v1-" + fill(64, hexLower), `^sk-or-v1-[0-9A-Za-z]{64}$`},
		{"GitHub", "ghp_" + fill(36, base62), `^ghp_[0-9A-Za-z]{36}$`},
		{"GitHub OAuth", "gho_" + fill(36, base62), `^gho_[0-9A-Za-z]{36}$`},
		{"GitHub fine-grained", "github_pat_" + fill(22, base62) + "_" + fill(59, base62), `^github_pat_[0-9A-Za-z]{22}_[0-9A-Za-z]{59}$`},
		{"Google", "AIza" + fill(35, base62), `^AIza[\w-]{35}$`},
		{"npm", "npm_" + fill(36, base62), `^npm_[0-9A-Za-z]{36}$`},
		{"PyPI", "pypi-AgENamed0Index1234567w" + fill(150, base64url), `^pypi-AgENamed0Index1234567w[\w-]{150}$`},
		{"GitLab", "glpat-" + fill(20, base62), `^glpat-[\w-]{20}$`},
		{"GitLab routable", "glpat-" + fill(27, base62) + ".01." + fill(9, lower+digits), `^glpat-[\w-]{27}\.01\.[0-9a-z]{9}$`},
		{"AWS", "AKIA" + fill(16, base32), `^AKIA[A-Z2-7]{16}$`},
		{"Slack", "xoxb-" + fill(50, base62), `^xoxb-[0-9A-Za-z]{50}$`},
		{"Hugging Face", "hf_" + fill(34, lower+upper), `^hf_[A-Za-z]{34}$`},
		{"Docker", "dckr_pat_" + fill(27, base64url), `^dckr_pat_[\w-]{27}$`},
		{"UUID", "01234567-89ab-4def-8123-456789abcdef", `^\d{6}\d\d-\d\d[a-z]{2}-\d[a-z]{3}-\d{4}-\d{6}[a-z]{6}$`},
		{"hexadecimal", fill(40, hexLower), `^[0-9a-f]{40}$`},
		{"generic", "Ab1-" + fill(30, upper) + "/" + fill(10, digits) + "+=", `^Ab1-[A-Z]{30}/\d{10}\+=$`},
		{"short", "hunter2-secret", `^hu[0-9A-Za-z]{24}$`},
		{"not ASCII", "pässwörtchen", `^p[0-9A-Za-z]{24}$`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, q := Placeholder(tc.value), Placeholder(tc.value)
			if !regexp.MustCompile(tc.expr).MatchString(p) {
				t.Errorf("%q does not match %s", p, tc.expr)
			}
			if p == q || p == tc.value {
				t.Errorf("not random: %q, %q", p, q)
			}
			if form := Form(tc.value); form != "" && form != Form(p) || (form == "") != (tc.name == "short" || tc.name == "not ASCII") {
				t.Errorf("the form is %q, and that of a placeholder %q", form, Form(p))
			}
			if strings.Contains(p, tc.value) || strings.Contains(tc.value, p) {
				t.Errorf("%q and %q overlap", p, tc.value)
			}
		})
	}
}

// TestForm: values that differ in length, prefix or alphabet have different forms.
func TestForm(t *testing.T) {
	forms := map[string]string{}
	for _, value := range []string{
		"sk-ant-api03-" + fill(93, base62) + "AA", "sk-ant-api03-" + fill(94, base62) + "AA", "sk-ant-oat01-" + fill(93, base62) + "AA",
		"ghp_" + fill(36, base62), "tok-1" + fill(30, lower), "tok-2" + fill(30, lower), "tok-1" + fill(30, upper), "f" + fill(39, hexLower), "f" + fill(40, hexLower),
	} {
		if other := forms[Form(value)]; other != "" || Form(value) == "" {
			t.Errorf("%s has the form of %q", value, other)
		}
		forms[Form(value)] = value
	}
}

func TestPlaceholderOfJWT(t *testing.T) {
	enc := base64.RawURLEncoding.EncodeToString
	header := enc([]byte(`{"alg":"RS256","typ":"JWT"}`))
	value := header + "." + enc([]byte(`{"exp":1790000000123456789,"iss":"https://issuer.test","email":"me@home.test","deep":{"ids":["secret-id",7]}}`)) + "." + fill(342, base64url)
	parts := strings.Split(Placeholder(value), ".")
	if len(parts) != 3 || parts[0] != header || len(parts[2]) != 342 {
		t.Fatalf("not a token: %v", parts)
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(payload) || !strings.Contains(string(payload), `"exp":1790000000123456789`) || !strings.Contains(string(payload), `"iss":"https://issuer.test"`) {
		t.Errorf("claims that clients read were changed: %s", payload)
	}
	for _, s := range []string{"me@home", "secret-id"} {
		if strings.Contains(string(payload), s) {
			t.Errorf("%s contains %s", payload, s)
		}
	}
}
