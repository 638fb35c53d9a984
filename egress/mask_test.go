package egress

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
)

func TestMaskText(t *testing.T) {
	for in, want := range map[string]string{
		"":                                       "",
		"nothing to mask: 10.0.0.1:80, [::1]:80": "nothing to mask: 10.0.0.1:80, [::1]:80",
		"why? because! 50% of #5, C#":            "why? because! 50% of #5, C",
		"user:secret@host:443":                   "***@host:443",
		"//user:secret@host:443":                 "//***@host:443/",
		"//user:secret@host/path/@scope":         "//***@host/path/@scope",
		"//user:sec/ret@host:443":                "//***@host:443/",
		"user:sec/ret@host:443":                  "***@host:443",
		"user:secret%40host:443":                 "***@host:443",
		"http:user:secret@host/":                 "***@host/",
		"http:///user:secret@host/":              "http:///***@host/",
		"http://user:sec/ret@host/x":             "http://***@host/x",
		"host:443?key=secret":                    "host:443?key=***",
		"host:443?secret":                        "host:443?***",
		"host:443/path?a=secret&b=secret":        "host:443/path?a=***&b=***",
		"host:443#secret":                        "host:443",
		"http://host/@scope/package":             "http://host/@scope/package",
		"http://host:8080/@scope/package":        "http://host:8080/@scope/package",
		"/@scope/package?x=secret":               "/@scope/package?x=***",
		`invalid host "user:secret@host"`:        `invalid host "***@host"`,
		"x 'http://user:secret@host/' y":         "x 'http://***@host/' y",
		"http://a/http://user:secret@host/":      "http://a/http://***@host/",
		"http://a/,b=http://user:secret@host/x":  "http://a/,b=http://***@host/x",
		"GET /?a=secret and http://b/?c=secret":  "GET /?a=*** and http://b/?c=***",
	} {
		got := maskText(in)
		if got != want {
			t.Errorf("maskText(%q) = %q, want %q", in, got, want)
		}
		if again := maskText(got); again != got {
			t.Errorf("maskText(%q) = %q, want no change", got, again)
		}
	}
}

// What a client puts into the target of a request may be a secret, also where it
// makes the request invalid. None of it gets into a line of the log.
func TestTargetsAreMasked(t *testing.T) {
	const secret = "hunter2secret"
	var mu sync.Mutex
	var log bytes.Buffer
	p := startProxy(t, Config{Entries: Entries{Allow: []string{"example.com"}}})
	p.Server.log.mu.Lock()
	p.Server.log.w = writerFunc(func(line []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return log.Write(line)
	})
	p.Server.log.mu.Unlock()
	for _, target := range []string{
		"user:hunter2secret@host.example:443", "host.example:443?key=hunter2secret", "host.example:443/a?key=hunter2secret",
		"host.example:443?hunter2secret", "host.example:443/#hunter2secret", "//user:hunter2secret@host.example:443",
		"user:hunter2secret@host.example", "hunter2secret@example.com:443", "user:pa/hunter2secret@host.example:443",
		"/a@b?key=hunter2secret", "//user:hunter2secret@host.example/", "//user:pa/hunter2secret@host.example/",
		"http://user:hunter2secret@example.com/", "http://user:hunter2secret@host.example/", "http://host.example/?key=hunter2secret",
		"http:user:hunter2secret@host.example/", "http:///user:hunter2secret@host.example/", "ftp://user:hunter2secret@host.example/?key=hunter2secret",
		"http://host.example/http://user:hunter2secret@host.example/", "*?key=hunter2secret",
		strings.Repeat("u", 90) + ":hunter2secret@host.example:443",
	} {
		for _, method := range []string{http.MethodConnect, http.MethodGet} {
			mu.Lock()
			log.Reset()
			mu.Unlock()
			res, body, _ := p.raw(t, method, method+" "+target+" HTTP/1.1\r\nHost: x\r\n\r\n")
			if res.StatusCode < 400 {
				t.Errorf("%s %s: %s %s", method, target, res.Status, body)
			}
			mu.Lock()
			if line := log.String(); line == "" || strings.Contains(line, secret) {
				t.Errorf("%s %s is logged as %s", method, target, line)
			}
			mu.Unlock()
		}
	}
	// In a tunnel, a name in the TLS handshake can be anything.
	s := p.connect(t, startEcho(t, p))
	if _, err := s.Write(hello(t, "user:hunter2secret@host.example?hunter2secret")); err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadAll(s)
	mu.Lock()
	defer mu.Unlock()
	if line := log.String(); !strings.Contains(line, EventSNIMismatch) || strings.Contains(line, secret) {
		t.Errorf("the handshake is logged as %s", line)
	}
}

// startEcho runs an echo server and returns a target that p allows for it.
func startEcho(t *testing.T, p *testProxy) string {
	t.Helper()
	target := fmt.Sprintf("example.com:%d", serveTCP(t, echo))
	if err := p.Reload(testConfig(Config{Entries: Entries{Allow: []string{target}}})); err != nil {
		t.Fatal(err)
	}
	return target
}
