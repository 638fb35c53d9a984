package egress

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestForwardRefusals(t *testing.T) {
	p := startProxy(t, Config{Entries: Entries{Allow: []string{"example.com", "private.example", "10.0.0.1", "lost.example"}}})
	for _, tc := range []struct {
		url    string
		header string
		status int
		line   string
	}{
		{"http://refused.example/x?token=secret", "", 403, "blocked: domain not in allowlist: refused.example"},
		{"http://REFUSED.example./", "", 403, "blocked: domain not in allowlist: refused.example"},
		{"http://example.com:8080/", "", 403, "blocked: port not in allowlist: example.com:8080"},
		{"http://refused.example/", "Host: example.com\r\n", 403, "blocked: domain not in allowlist: refused.example"},
		{"http://private.example/", "", 403, "blocked: SSRF: private.example resolves to 10.99.0.10, a private or special address"},
		{"http://10.0.0.1/", "", 403, "blocked: SSRF: 10.0.0.1 is a private or special address"},
		{"http://lost.example/", "", 403, "blocked: DNS lookup of lost.example failed: no such host"},
		{"https://example.com/", "", 403, "blocked: https URLs are not forwarded: use CONNECT for https"},
		{"ftp://example.com/", "", 403, "blocked: ftp URLs are not forwarded: use CONNECT for https"},
		{"http://user:pw@example.com/", "", 400, "blocked: URL contains user information: send an Authorization header instead"},
		{"http:///path", "", 400, "blocked: URL has no host"},
		{"http:example.com", "", 400, "blocked: URL has no host"},
		{"http://2130706433/", "", 400, `blocked: invalid host "2130706433": looks like a number: expected an IPv4 address in dotted decimal`},
		{"http://example.com:99999/", "", 400, `blocked: invalid port "99999" (1 to 65535)`},
		{"http://example.com/", "Connection: Upgrade\r\nUpgrade: websocket\r\n", 403, "blocked: WebSocket over plain HTTP is not forwarded to example.com: use wss"},
	} {
		header := tc.header
		if !strings.HasPrefix(header, "Host:") {
			header += "Host: x\r\n"
		}
		res, body, _ := p.raw(t, http.MethodGet, "GET "+tc.url+" HTTP/1.1\r\n"+header+"\r\n")
		if res.StatusCode != tc.status || firstLine(body) != tc.line {
			t.Errorf("GET %s: %s: %q, want %d: %q", tc.url, res.Status, firstLine(body), tc.status, tc.line)
		}
		if got := res.Header.Get("X-Should-Retry"); got != "false" {
			t.Errorf("GET %s: X-Should-Retry: %q", tc.url, got)
		}
	}
	e := p.log.waitEvent(t, EventBlocked)
	if e.URL != "http://refused.example/x?token=***" || e.Method != http.MethodGet || e.Status != 403 {
		t.Errorf("logged %+v", e)
	}
}

func TestForward(t *testing.T) {
	got := make(chan *http.Request, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got <- r
		w.Header().Set("Connection", "X-Hop")
		w.Header().Set("X-Hop", "1")
		w.Header().Set("X-End", "1")
		w.Header().Set("Keep-Alive", "timeout=5")
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, "body")
	}))
	defer srv.Close()
	port := portOf(srv.Listener.Addr().String())
	p := startProxy(t, Config{Entries: Entries{Allow: []string{fmt.Sprintf("example.com:%d", port)}}})
	res, body, _ := p.raw(t, http.MethodGet, fmt.Sprintf("GET http://EXAMPLE.com.:%d/a%%2Fb/../c?x=1;y=%%zz&z HTTP/1.1\r\n", port)+
		"Host: other.example\r\nConnection: X-Mine, Upgrade\r\nX-Mine: 1\r\nUpgrade: h2c\r\nProxy-Connection: keep-alive\r\n"+
		"Proxy-Authorization: Basic c2VjcmV0\r\nKeep-Alive: 1\r\nX-Keep: 1\r\nX-Forwarded-For: 1.2.3.4\r\nAccept-Encoding: gzip\r\n\r\n")
	if res.StatusCode != http.StatusTeapot || body != "body" {
		t.Fatalf("%s: %q", res.Status, body)
	}
	if res.Header.Get("X-End") != "1" || res.Header.Get("X-Hop") != "" || res.Header.Get("Keep-Alive") != "" || res.Header.Get("X-Should-Retry") != "" {
		t.Errorf("response headers: %v", res.Header)
	}
	r := <-got
	if want := fmt.Sprintf("example.com:%d", port); r.Host != want {
		t.Errorf("Host is %q, want the checked host %q", r.Host, want)
	}
	if want := "/a%2Fb/../c?x=1;y=%zz&z"; r.RequestURI != want {
		t.Errorf("the target is %q, want %q", r.RequestURI, want)
	}
	names := slices.Sorted(maps.Keys(r.Header))
	if want := "Accept-Encoding X-Forwarded-For X-Keep"; strings.Join(names, " ") != want {
		t.Errorf("request headers are %v, want %s", names, want)
	}
	e := p.log.waitEvent(t, EventForwardClose)
	if e.Status != http.StatusTeapot || e.Bytes != 4 || e.URL != fmt.Sprintf("http://EXAMPLE.com.:%d/a%%2Fb/../c?x=***;y=***&***", port) {
		t.Errorf("logged %+v", e)
	}
}

// Redirects are passed to the client, and checked when it follows them.
func TestForwardRedirect(t *testing.T) {
	srv := httptest.NewServer(http.RedirectHandler("http://refused.example/", http.StatusFound))
	defer srv.Close()
	port := portOf(srv.Listener.Addr().String())
	p := startProxy(t, Config{Entries: Entries{Allow: []string{fmt.Sprintf("example.com:%d", port)}}})
	res, err := p.client(t, srv).Get(fmt.Sprintf("http://example.com:%d/", port))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusFound || res.Header.Get("Location") != "http://refused.example/" {
		t.Errorf("%s to %s", res.Status, res.Header.Get("Location"))
	}
}

// Bodies stream in both directions: each part arrives before the next is sent.
func TestForwardStreams(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		if err := rc.EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		for lines := bufio.NewScanner(r.Body); lines.Scan(); {
			_, _ = fmt.Fprintf(w, "echo %s\n", lines.Text())
			_ = rc.Flush()
		}
	}))
	defer srv.Close()
	port := portOf(srv.Listener.Addr().String())
	p := startProxy(t, Config{Entries: Entries{Allow: []string{fmt.Sprintf("example.com:%d", port)}}})
	body, feed := io.Pipe()
	defer func() { _ = feed.Close() }()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, fmt.Sprintf("http://example.com:%d/", port), body)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.WriteString(feed, "0\n") }()
	res, err := p.client(t, srv).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	answer := bufio.NewReader(res.Body)
	for i := range 3 {
		got, err := answer.ReadString('\n')
		if want := fmt.Sprintf("echo %d\n", i); err != nil || got != want {
			t.Fatalf("%q, %v; want %q", got, err, want)
		}
		if _, err := fmt.Fprintf(feed, "%d\n", i+1); err != nil {
			t.Fatal(err)
		}
	}
	_ = feed.Close()
	if _, err := io.Copy(io.Discard, answer); err != nil {
		t.Error(err)
	}
}

func TestForwardBigBody(t *testing.T) {
	const size = 32 << 20
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		_, _ = io.Copy(sum, r.Body)
		_, _ = fmt.Fprintf(w, "%x\n", sum.Sum(nil))
		_, _ = io.Copy(w, io.LimitReader(rand.NewChaCha8([32]byte{2}), size))
	}))
	defer srv.Close()
	port := portOf(srv.Listener.Addr().String())
	p := startProxy(t, Config{Entries: Entries{Allow: []string{fmt.Sprintf("example.com:%d", port)}}})
	sent := sha256.New()
	body := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), size), sent)
	res, err := p.client(t, srv).Post(fmt.Sprintf("http://example.com:%d/", port), "application/octet-stream", body)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	answer := bufio.NewReader(res.Body)
	line, err := answer.ReadString('\n')
	if want := fmt.Sprintf("%x\n", sent.Sum(nil)); err != nil || line != want {
		t.Errorf("server received %q, %v; want %q", line, err, want)
	}
	got, want := sha256.New(), sha256.New()
	_, _ = io.Copy(want, io.LimitReader(rand.NewChaCha8([32]byte{2}), size))
	if n, err := io.Copy(got, answer); err != nil || n != size || string(got.Sum(nil)) != string(want.Sum(nil)) {
		t.Errorf("%d bytes of %d, identical: %v, %v", n, size, string(got.Sum(nil)) == string(want.Sum(nil)), err)
	}
}

// A truncated response must not look complete.
func TestForwardTruncatedResponse(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "part")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	defer srv.Close()
	port := portOf(srv.Listener.Addr().String())
	p := startProxy(t, Config{Entries: Entries{Allow: []string{fmt.Sprintf("example.com:%d", port)}}})
	res, err := p.client(t, srv).Get(fmt.Sprintf("http://example.com:%d/", port))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if got, err := io.ReadAll(res.Body); err == nil {
		t.Errorf("%q was received as a complete response", got)
	}
	if e := p.log.waitEvent(t, EventForwardClose); e.Status != http.StatusOK || e.Bytes != 4 {
		t.Errorf("logged %+v", e)
	}
}

// A pooled connection is not used for a host that a reload removed.
func TestForwardAfterReload(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer srv.Close()
	port := portOf(srv.Listener.Addr().String())
	cfg := testConfig(Config{Entries: Entries{Allow: []string{fmt.Sprintf("example.com:%d", port)}}})
	p := startProxy(t, cfg)
	client := p.client(t, srv)
	get := func() int {
		res, err := client.Get(fmt.Sprintf("http://example.com:%d/", port))
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		return res.StatusCode
	}
	if got := get(); got != http.StatusOK {
		t.Fatalf("%d, want 200", got)
	}
	cfg.AllowPrivate = []string{"10.0.0.0/8"} // no longer loopback
	if err := p.Reload(cfg); err != nil {
		t.Fatal(err)
	}
	if got := get(); got != http.StatusForbidden {
		t.Errorf("%d after the address was removed, want 403", got)
	}
	cfg.Allow = nil
	if err := p.Reload(cfg); err != nil {
		t.Fatal(err)
	}
	if got := get(); got != http.StatusForbidden {
		t.Errorf("%d after the host was removed, want 403", got)
	}
}

// A request without data for the idle timeout ends; an active one does not.
func TestForwardIdle(t *testing.T) {
	const bytes = 30 // longer than the idle timeout
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for range bytes {
			_, _ = io.WriteString(w, "x")
			_ = http.NewResponseController(w).Flush()
			time.Sleep(pause)
		}
		<-r.Context().Done()
	}))
	defer srv.Close()
	port := portOf(srv.Listener.Addr().String())
	p := startProxy(t, Config{IdleTimeout: Duration(idle), Entries: Entries{Allow: []string{fmt.Sprintf("example.com:%d", port)}}})
	res, err := p.client(t, srv).Get(fmt.Sprintf("http://example.com:%d/", port))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	got, err := io.ReadAll(res.Body)
	if err == nil || len(got) != bytes {
		t.Errorf("%d bytes, %v; want %d, then an error", len(got), err, bytes)
	}
}
