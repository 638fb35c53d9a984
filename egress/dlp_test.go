package egress

import (
	"encoding/base64"
	"encoding/hex"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// testSecret has the format of a GitHub token but is not one.
const testSecret = "ghp_" + "0123456789abcdefghijABCDEFGHIJ012345"

// testSendGrid has the format of a SendGrid key but is not one.
const testSendGrid = "SG.0123456789abcdefghijAB." + "0123456789abcdefghijABCDEFGHIJ0123456789_-x"

// Secrets in the URL or headers of a plain request are refused; text that only
// resembles one passes.
func TestForwardSecrets(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "served") }))
	defer srv.Close()
	host := strings.Replace(strings.TrimPrefix(srv.URL, "http://"), "127.0.0.1", "example.com", 1)
	wild := strings.Replace(host, "example.com", testSecret+".example.com", 1)
	p := startProxy(t, Config{Entries: Entries{Allow: []string{host, "*." + host}}})
	hexed := hex.EncodeToString([]byte(testSecret))
	hexHost := hexed[:50] + "." + hexed[50:] + "." + host
	basic := base64.StdEncoding.EncodeToString([]byte("user:" + testSecret))
	for _, tc := range []struct {
		name, url, header string
		status            int
		want              string
	}{
		{"nothing", "http://" + host + "/", "", 200, "served"},
		{"a short prefix of one", "http://" + host + "/ghp_0123", "Authorization: Bearer ghp_0123\r\n", 200, "served"},
		{"a number in a word", "http://" + host + "/task-sk-1234567890", "", 200, "served"},
		{"in the path", "http://" + host + "/a/" + testSecret, "", 403, "URL contains what looks like a GitHub token"},
		{"in the query", "http://" + host + "/?q=" + testSecret, "", 403, "URL contains what looks like a GitHub token"},
		{"percent-encoded", "http://" + host + "/?q=" + strings.ReplaceAll(testSecret, "_", "%5f"), "", 403, "URL contains"},
		{"percent-encoded, in the path", "http://" + host + "/" + strings.ReplaceAll(testSecret, "_", "%5f"), "", 403, "URL contains"},
		{"after an invalid escape", "http://" + host + "/?x=%zz&q=" + strings.ReplaceAll(testSecret, "_", "%5f"), "", 403, "URL contains"},
		{"encoded twice", "http://" + host + "/?q=" + strings.ReplaceAll(testSecret, "_", "%255f"), "", 403, "URL contains"},
		{"in a header", "http://" + host + "/", "X-Note: " + testSecret + "\r\n", 403, "header X-Note contains what looks like a GitHub token"},
		{"in basic credentials", "http://" + host + "/", "Authorization: Basic " + basic + "\r\n", 403, "header Authorization contains"},
		{"base64", "http://" + host + "/?q=" + base64.StdEncoding.EncodeToString([]byte(testSecret)), "", 403, "URL contains what looks like a GitHub token"},
		{"base64 of more than the secret", "http://" + host + "/?q=" + base64.StdEncoding.EncodeToString([]byte("\x00\xfe{"+testSecret+"}")), "", 403, "URL contains"},
		{"base64 for URLs, after a path", "http://" + host + "/ab/c/" + base64.RawURLEncoding.EncodeToString([]byte("~~??"+testSecret)), "", 403, "URL contains"},
		{"base64, percent-encoded", "http://" + host + "/?q=" + url.QueryEscape(base64.StdEncoding.EncodeToString([]byte("~~??"+testSecret))), "", 403, "URL contains"},
		{"base64 in a header", "http://" + host + "/", "X-Note: a=1; b=" + base64.StdEncoding.EncodeToString([]byte(testSecret)) + "\r\n", 403, "header X-Note contains what looks like a GitHub token"},
		{"hexadecimal", "http://" + host + "/?q=" + hex.EncodeToString([]byte(testSecret)), "", 403, "URL contains what looks like a GitHub token"},
		{"hexadecimal, in capitals, after a digit", "http://" + host + "/7" + strings.ToUpper(hex.EncodeToString([]byte(testSecret))), "", 403, "URL contains"},
		{"hexadecimal in a header", "http://" + host + "/", "X-Note: " + hex.EncodeToString([]byte(testSecret)) + "\r\n", 403, "header X-Note contains"},
		{"hexadecimal in the host", "http://" + hexHost + "/", "", 403, "host name contains what looks like a GitHub token"},
		{"SendGrid's key", "http://" + host + "/?k=" + testSendGrid, "", 403, "URL contains what looks like a SendGrid key"},
		{"hashes", "http://" + host + "/sha256:" + strings.Repeat("0123456789abcdef", 4) + "?etag=" + strings.Repeat("0f1e", 10), "If-None-Match: \"2jmj7l5rSw0yVb/vlWAYkK/YBwk=\"\r\n", 200, "served"},
		{"base64 of ordinary text", "http://" + host + "/?q=" + base64.StdEncoding.EncodeToString([]byte("a user's own words, sk- and ghp_, and a name")), "", 200, "served"},
		{"ordinary credentials", "http://" + host + "/", "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("user:correct horse battery staple")) + "\r\n", 200, "served"},
		{"a version like SendGrid's key", "http://" + host + "/SG.1.2/sg.example.com.deb", "", 200, "served"},
		{"in the host", "http://" + wild + "/", "", 403, "host name contains what looks like a GitHub token"},
		{"URL too long", "http://" + host + "/" + strings.Repeat("x", maxURL), "", 403, "URL is longer than 8192 bytes"},
	} {
		res, body, _ := p.raw(t, http.MethodGet, "GET "+tc.url+" HTTP/1.1\r\nHost: x\r\n"+tc.header+"\r\n")
		if res.StatusCode != tc.status || !strings.Contains(body, tc.want) {
			t.Errorf("%s: %s %q, want %d %q", tc.name, res.Status, body, tc.status, tc.want)
		}
		if strings.Contains(body, testSecret) {
			t.Errorf("%s: the response contains the secret: %q", tc.name, body)
		}
	}
	if res, body, _ := p.raw(t, http.MethodConnect, "CONNECT "+wild+" HTTP/1.1\r\n\r\n"); res.StatusCode != http.StatusForbidden || !strings.Contains(body, "GitHub") {
		t.Errorf("CONNECT to a host that contains a secret: %s %q", res.Status, body)
	}
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	for _, e := range p.log.entries {
		for _, text := range decodings(strings.ToLower(e.URL + " " + e.Target + " " + e.Reason)) {
			if strings.Contains(text, strings.ToLower(testSecret)) {
				t.Errorf("the log contains the secret: %+v", e)
			}
		}
		for _, text := range []string{e.URL, e.Target, e.Reason} {
			if encodedSecretIn(text) != "" || secretInHost(text) != "" || strings.Contains(strings.ToLower(text), hexed[:50]) {
				t.Errorf("the log contains an encoded secret: %+v", e)
			}
		}
	}
}

// Each format is found in a text and named.
func TestSecretPatterns(t *testing.T) {
	x := func(n int) string { return strings.Repeat("a1", n)[:n] }
	for text, want := range map[string]string{
		"sk-ant-api03-" + x(30):     "an Anthropic key",
		"sk-proj-" + x(30):          "an OpenAI key",
		"sk-" + x(48):               "an OpenAI key",
		"gho_" + x(36):              "a GitHub token",
		"github_pat_" + x(40):       "a GitHub token",
		"glpat-" + x(20):            "a GitLab token",
		"AKIA" + "ABCDEFGHIJKLMNOP": "an AWS key",
		"AIza" + x(35):              "a Google key",
		"xoxb-" + x(20):             "a Slack token",
		"sk_live_" + x(24):          "a Stripe key",
		testSendGrid:                "a SendGrid key",
		"npm_" + x(36):              "an npm token",
		"hf_" + x(34):               "a Hugging Face token",
		"eyJ" + x(12) + ".eyJ" + x(12) + "." + x(12): "a signed token (JWT)",
		"-----BEGIN RSA PRIVATE KEY-----":            "a private key",
		"registry.example/sk-learn/akiax":            "",
		"https://example.com/eyj/npm_install":        "",
	} {
		if got := secretIn("x " + text + " y"); got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
		if masked := maskSecrets("x " + text + " y"); (want != "") != (masked == "x *** y") && want != "a private key" {
			t.Errorf("%q is masked as %q", text, masked)
		}
	}
}

// Random data in base64 or hexadecimal is not mistaken for a secret.
func TestEncodedSecretsAreRare(t *testing.T) {
	random := rand.NewChaCha8([32]byte{1})
	data := make([]byte, 64<<10)
	for range 20 {
		_, _ = random.Read(data)
		for _, text := range []string{base64.StdEncoding.EncodeToString(data), base64.RawURLEncoding.EncodeToString(data), hex.EncodeToString(data)} {
			if kind := anySecretIn(text); kind != "" {
				t.Errorf("%d random bytes contain %s", len(data), kind)
			}
		}
	}
}

func FuzzSecretIn(f *testing.F) {
	f.Add("http://a/?x=" + testSecret)
	f.Add("%25%67hp_")
	f.Fuzz(func(t *testing.T, text string) {
		if secretIn(maskSecrets(text)) != "" && len(text) >= 16 && !strings.Contains(text, "***") {
			t.Errorf("%q: masked as %q, which still contains a secret", text, maskSecrets(text))
		}
		decodings(text)
		encodedSecretIn(text)
	})
}
