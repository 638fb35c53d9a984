package egress

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestHealth(t *testing.T) {
	p := startProxy(t, Config{})
	res, body, _ := p.raw(t, http.MethodGet, "GET /health HTTP/1.1\r\nHost: whatever\r\n\r\n")
	var health struct{ Status string }
	if err := json.Unmarshal([]byte(body), &health); err != nil || res.StatusCode != http.StatusOK || health.Status != "healthy" {
		t.Errorf("%s: %s (%v)", res.Status, body, err)
	}
	for _, text := range []string{
		"POST /health HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /health?x HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET //health HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: example.com\r\n\r\n",
	} {
		if res, body, _ := p.raw(t, http.MethodGet, text); res.StatusCode != http.StatusNotFound {
			t.Errorf("%q: %s: %s, want 404", firstLine(text), res.Status, body)
		}
	}
	res, _, _ = p.raw(t, http.MethodGet, "GET http://refused.example/health HTTP/1.1\r\nHost: x\r\n\r\n")
	if res.StatusCode != http.StatusForbidden {
		t.Errorf("another host's /health: %s, want 403", res.Status)
	}
}

func TestReloadKeepsTunnels(t *testing.T) {
	port := serveTCP(t, echo)
	entries := func(host string) Config {
		return testConfig(Config{Entries: Entries{SSH: []string{fmt.Sprintf("%s:%d", host, port)}}})
	}
	p := startProxy(t, entries("a.example.com"))
	a, other := fmt.Sprintf("a.example.com:%d", port), fmt.Sprintf("other.example.com:%d", port)
	open := p.connect(t, a)
	open.roundTrip(t, "before")
	p.wantStatus(t, other, http.StatusForbidden)

	if err := p.Reload(entries("other.example.com")); err != nil {
		t.Fatal(err)
	}
	p.wantStatus(t, a, http.StatusForbidden)
	p.connect(t, other).roundTrip(t, "new policy")
	open.roundTrip(t, "after")
	p.log.waitEvent(t, EventReload)

	if err := p.Reload(entries("https://a.example.com")); err == nil {
		t.Error("an invalid policy was applied")
	}
	p.wantStatus(t, a, http.StatusForbidden)
	p.connect(t, other).roundTrip(t, "current policy")
	open.roundTrip(t, "after the invalid policy")
}

func (p *testProxy) wantStatus(t *testing.T, target string, status int) {
	t.Helper()
	res, body, s := p.raw(t, http.MethodConnect, "CONNECT "+target+" HTTP/1.1\r\nHost: x\r\n\r\n")
	_ = s.Close()
	if res.StatusCode != status {
		t.Errorf("CONNECT %s: %s: %s, want %d", target, res.Status, body, status)
	}
}

// When the context ends, tunnels, idle connections and hanging requests end
// within about a second.
func TestServeEnds(t *testing.T) {
	port := serveTCP(t, echo)
	got := make(chan struct{})
	silent := serveTCP(t, func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 1))
		close(got)
		_, _ = io.Copy(io.Discard, c)
	})
	p := startProxy(t, Config{Entries: Entries{
		SSH:   []string{fmt.Sprintf("example.com:%d", port)},
		Allow: []string{fmt.Sprintf("example.com:%d", silent)},
	}})
	tunnel := p.connect(t, fmt.Sprintf("example.com:%d", port))
	tunnel.roundTrip(t, "x")
	p.dial(t) // sends nothing
	waiting := p.dial(t)
	if _, err := fmt.Fprintf(waiting, "GET http://example.com:%d/ HTTP/1.1\r\nHost: x\r\n\r\n", silent); err != nil {
		t.Fatal(err)
	}
	<-got
	start := time.Now()
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d > 1500*time.Millisecond {
		t.Errorf("Serve took %s to end", d)
	}
	if _, err := io.ReadAll(tunnel); err != nil {
		t.Errorf("tunnel: %v", err)
	}
	e := p.log.waitEvent(t, EventTunnelClose)
	if e.Reason != "proxy is shutting down" {
		t.Errorf("logged %+v", e)
	}
	if c, err := net.Dial("tcp", p.addr); err == nil {
		_ = c.Close()
		t.Error("the proxy is still listening")
	}
}

func TestServeFails(t *testing.T) {
	s, err := New(Config{}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	l := listen(t)
	_ = l.Close()
	if err := s.Serve(t.Context(), l); err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("Serve on a closed listener: %v", err)
	}
}

// Main from startup to shutdown, with a valid and an invalid reload.
func TestMainLifecycle(t *testing.T) {
	checkGoroutines(t)
	path := filepath.Join(t.TempDir(), "proxy.json")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l := listen(t)
	addr := l.Addr().String()
	_ = l.Close()
	write(fmt.Sprintf(`{"listen": %q, "allow": []}`, addr))

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	reload := make(chan os.Signal, 1)
	log := newEventLog()
	var stderr bytes.Buffer
	ended := make(chan error, 1)
	go func() { ended <- Main(ctx, path, "", reload, log, &stderr) }()
	log.waitEvent(t, EventStartup)
	p := &testProxy{addr: addr, log: log}
	p.wantStatus(t, "127.0.0.1:1", http.StatusForbidden)

	write(fmt.Sprintf(`{"listen": %q, "allow": ["127.0.0.1:1"], "allow_private": ["127.0.0.1"]}`, addr))
	reload <- syscall.SIGHUP
	log.waitEvent(t, EventReload)
	p.wantStatus(t, "127.0.0.1:1", http.StatusBadGateway)

	write(`{"listen": `)
	reload <- syscall.SIGHUP
	e := log.wait(t, "rejected reload", func(e Entry) bool { return e.Event == EventError && e.Target == "" })
	if !strings.Contains(e.Reason, "line 1") || !strings.Contains(e.Reason, "current one stays") {
		t.Errorf("logged %+v", e)
	}
	p.wantStatus(t, "127.0.0.1:1", http.StatusBadGateway)

	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Main: %v", err)
	}
	log.waitEvent(t, EventShutdown)
	if !strings.Contains(stderr.String(), "line 1") {
		t.Errorf("stderr: %q", stderr.String())
	}
}

// The caller's address replaces the file's, which may have none, also in a reload.
func TestMainListen(t *testing.T) {
	checkGoroutines(t)
	path := filepath.Join(t.TempDir(), "proxy.json")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l := listen(t)
	addr := l.Addr().String()
	_ = l.Close()
	write(`{"allow": []}`)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := Main(ctx, path, "", nil, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), "listen") {
		t.Errorf("without any address: %v", err)
	}
	if err := Main(ctx, path, "0.0.0.0:1", nil, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), "unspecified") {
		t.Errorf("on the unspecified address: %v", err)
	}
	reload := make(chan os.Signal, 1)
	log := newEventLog()
	ended := make(chan error, 1)
	go func() { ended <- Main(ctx, path, addr, reload, log, io.Discard) }()
	log.waitEvent(t, EventStartup)
	p := &testProxy{addr: addr, log: log}
	p.wantStatus(t, "127.0.0.1:1", http.StatusForbidden)
	write(`{"allow": ["127.0.0.1:1"], "allow_private": ["127.0.0.1"]}`)
	reload <- syscall.SIGHUP
	log.waitEvent(t, EventReload)
	p.wantStatus(t, "127.0.0.1:1", http.StatusBadGateway)
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Main: %v", err)
	}
}

func TestMainCannotListen(t *testing.T) {
	l := listen(t)
	path := filepath.Join(t.TempDir(), "proxy.json")
	if err := os.WriteFile(path, fmt.Appendf(nil, `{"listen": %q}`, l.Addr()), 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout bytes.Buffer
	err := Main(t.Context(), path, "", nil, &stdout, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "address already in use") || stdout.Len() > 0 {
		t.Errorf("%v; stdout %q", err, &stdout)
	}
}

func TestLoadConfig(t *testing.T) {
	const good = `{
		"listen": "10.77.0.1:8888", "allow": ["example.com"], "ssh": ["git.example.com:2222"],
		"allow_private": ["10.1.0.0/16"], "max_connections": 10, "idle_timeout": "90s"
	}`
	for _, tc := range []struct{ text, err string }{
		{good, ""},
		{`{"listen": "[fd00::1]:8888"}`, ""},
		{``, "EOF"},
		{`{}`, "listen"},
		{`{"listen": "0.0.0.0:8888"}`, "unspecified address"},
		{`{"listen": "[::]:8888"}`, "unspecified address"},
		{`{"listen": ":8888"}`, "invalid address"},
		{`{"listen": "localhost:8888"}`, "invalid address"},
		{"{\"listen\": \"10.77.0.1:8888\",\n\"alow\": []}", `line 2: json: unknown field "alow"`},
		{"{\n\n\"allow\": \"x\"}", "line 3"},
		{"{\"listen\": \"10.77.0.1:8888\",\n\"idle_timeout\": 3}", "line 2"},
		{"{\"listen\": \"10.77.0.1:8888\",\n\"idle_timeout\": \"3\"}", "invalid duration"},
		{`{"listen": "10.77.0.1:8888", "idle_timeout": "-3s"}`, "idle_timeout: -3s is negative"},
		{`{"listen": "10.77.0.1:8888", "max_connections": -1}`, "max_connections: -1 is negative"},
		{`{"listen": "10.77.0.1:8888", "allow": ["a.example", "*"]}`, "allow[1]"},
		{"{\"listen\": \"10.77.0.1:8888\",\n\"ssh\": [\"a\"],\n\"allow\": [\n\"a.example\",\n\"*\"]}", "line 5: allow[1]"},
		{"{\"listen\": \"10.77.0.1:8888\",\n\"Allow_Private\": [\n\"10.0.0.0/40\"]}", "line 3: allow_private[0]"},
		{"{\"listen\": \"10.77.0.1:8888\"}\n{}", "line 2: unexpected data"},
		{"{\"listen\": \"10.77.0.1:8888\"}x", "unexpected data"},
		{`[]`, "line 1"},
	} {
		path := filepath.Join(t.TempDir(), "proxy.json")
		if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := LoadConfig(path)
		switch {
		case tc.err == "" && err != nil:
			t.Errorf("%s: %v", tc.text, err)
		case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err) || !strings.Contains(err.Error(), path)):
			t.Errorf("%s: %v, want the path and %q", tc.text, err, tc.err)
		}
	}
	if _, err := LoadConfig(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a missing file was loaded")
	}
}

// A configuration that was encoded decodes to the same value.
func TestConfigRoundTrip(t *testing.T) {
	cfg := Config{
		Listen: "10.77.0.1:8888", IdleTimeout: Duration(90 * time.Second),
		Entries: Entries{Allow: []string{"example.com"}, SSH: []string{"git.example.com"}, AllowPrivate: []string{"10.1.0.0/16"}},
	}
	data, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseConfig(data)
	if err != nil {
		t.Fatalf("%s: %v", data, err)
	}
	if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", cfg) {
		t.Errorf("%+v, want %+v", got, cfg)
	}
}
