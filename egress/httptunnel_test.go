package egress

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// webServer responds with the request line and the Host of each request.
func webServer(t *testing.T) (port int) {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "%s %s %s %s", r.Method, r.Host, r.RequestURI, body)
	}))
	t.Cleanup(srv.Close)
	return portOf(srv.Listener.Addr().String())
}

// ask sends text in a tunnel and returns the response to it, its body read.
func (s *stream) ask(t *testing.T, text string) (*reply, string) {
	t.Helper()
	if _, err := io.WriteString(s, text); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(s.r, nil)
	if err != nil {
		t.Fatalf("read response to %.80q: %v", text, err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	return &reply{StatusCode: res.StatusCode, Status: res.Status, Header: res.Header, Close: res.Close}, string(body)
}

// Plain HTTP in a tunnel, as undici and curl -p send it, is served and logged as
// one in absolute form is.
func TestHTTPInTunnel(t *testing.T) {
	port := webServer(t)
	host := fmt.Sprintf("a.example.com:%d", port)
	p := startProxy(t, Config{Entries: Entries{Allow: []string{host}}})
	s := p.connect(t, host)
	for i, text := range []string{
		"GET /0?k=v HTTP/1.1\r\nHost: " + host + "\r\nConnection: keep-alive\r\n\r\n",
		"POST /1?k=v HTTP/1.1\r\nhost: A.Example.COM.:" + fmt.Sprint(port) + "\r\nContent-Length: 4\r\n\r\nbody",
		"POST /2?k=v HTTP/1.1\r\nHost: " + host + "\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
		"OPTIONS /3?k=v HTTP/1.1\r\nHost: " + host + "\r\n\r\n",
	} {
		method, rest, _ := strings.Cut(text, " ")
		path, _, _ := strings.Cut(rest, " ")
		want := fmt.Sprintf("%s %s %s ", method, host, path)
		if method == http.MethodPost {
			want += "body"
		}
		if res, body := s.ask(t, text); res.StatusCode != http.StatusOK || body != want {
			t.Errorf("request %d: %s %q, want %q", i, res.Status, body, want)
		}
	}
	p.log.wait(t, "end of the last request", func(e Entry) bool {
		return e.Event == EventForwardClose && strings.HasPrefix(e.URL, "http://"+host+"/3")
	})
	for _, event := range []string{EventForwardOpen, EventForwardClose} {
		entries := p.log.events(event)
		if len(entries) != 4 {
			t.Fatalf("%d lines of %s, want 4", len(entries), event)
		}
		for i, e := range entries {
			if want := fmt.Sprintf("http://%s/%d?k=***", host, i); e.URL != want || e.Rule != host || e.Destination() != host {
				t.Errorf("logged %+v, want %s", e, want)
			}
		}
	}
	if n := len(p.log.events(EventTunnelOpen)); n > 0 {
		t.Errorf("%d tunnels are logged as well", n)
	}
}

// Clients that send their request together with CONNECT, or in small pieces.
func TestHTTPInTunnelPieces(t *testing.T) {
	port := webServer(t)
	host := fmt.Sprintf("a.example.com:%d", port)
	p := startProxy(t, Config{Entries: Entries{Allow: []string{host}}})
	text := "M-SEARCH /x HTTP/1.1\r\nHost: " + host + "\r\n\r\n"
	want := fmt.Sprintf("M-SEARCH %s /x ", host)
	_, _, s := p.raw(t, http.MethodConnect, "CONNECT "+host+" HTTP/1.1\r\nHost: x\r\n\r\n"+text)
	if res, body := s.ask(t, text); body != want {
		t.Errorf("sent early: %s %q, want %q", res.Status, body, want)
	}
	s = p.connect(t, host)
	for _, b := range []byte(text) {
		if _, err := s.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	if res, body := s.ask(t, text); body != want {
		t.Errorf("in pieces: %s %q, want %q", res.Status, body, want)
	}
}

// Each request in a tunnel has to be for the host and port of the CONNECT, and meets
// the checks that one in absolute form meets. The server must not see the others;
// after them, the connection is closed.
func TestHTTPInTunnelRefusals(t *testing.T) {
	port := webServer(t)
	host, other := fmt.Sprintf("a.example.com:%d", port), fmt.Sprintf("other.example.com:%d", port)
	p := startProxy(t, Config{Entries: Entries{Allow: []string{host, other, "git.example.com"}}})
	good := "GET /good HTTP/1.1\r\nHost: " + host + "\r\n\r\n"
	for _, tc := range []struct {
		name, text string
		status     int
		scanner    string
		reason     string
		open       bool // the connection may be used again
	}{
		{"another host", "GET / HTTP/1.1\r\nHost: refused.example\r\n\r\n", 403, "host", `HTTP request is for "refused.example:80", CONNECT named ` + host, false},
		{"another allowed host", "GET / HTTP/1.1\r\nHost: " + other + "\r\n\r\n", 403, "host", "CONNECT named", false},
		{"another port", "GET / HTTP/1.1\r\nHost: a.example.com:8080\r\n\r\n", 403, "host", "CONNECT named", false},
		{"the default port", "GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n", 403, "host", `for "a.example.com:80"`, false},
		{"a host below", "GET / HTTP/1.1\r\nHost: x." + host + "\r\n\r\n", 403, "host", "CONNECT named", false},
		{"user info in Host", "GET / HTTP/1.1\r\nHost: " + host + "@" + other + "\r\n\r\n", 400, "parser", "", false},
		{"path in Host", "GET / HTTP/1.1\r\nHost: " + host + "/x\r\n\r\n", 400, "parser", "", false},
		{"no Host", "GET / HTTP/1.1\r\n\r\n", 400, "parser", "malformed request", false},
		{"empty Host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", 400, "parser", "CONNECT named", false},
		{"no Host, HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", 400, "parser", "CONNECT named", false},
		{"two Hosts", "GET / HTTP/1.1\r\nHost: " + host + "\r\nHost: " + other + "\r\n\r\n", 400, "parser", "malformed request", false},
		{"asterisk form", "OPTIONS * HTTP/1.1\r\nHost: " + host + "\r\n\r\n", 400, "parser", "path as target", false},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "parser", "path as target", false},
		{"two lengths", "POST / HTTP/1.1\r\nHost: " + host + "\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", 400, "parser", "malformed request", false},
		{"unknown encoding", "POST / HTTP/1.1\r\nHost: " + host + "\r\nTransfer-Encoding: x\r\n\r\n", 501, "parser", "malformed request", false},
		{"not HTTP after all", "GET /\r\n\r\n", 400, "parser", "malformed request", false},
		{"websocket", "GET / HTTP/1.1\r\nHost: " + host + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 403, "websocket", "use wss", true},
		{"secret", "GET /" + testSecret + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n", 403, "dlp", "GitHub", true},
		{"long URL", "GET /" + strings.Repeat("x", maxURL) + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n", 403, "length", "longer", false},
		{"many lines", "GET / HTTP/1.1\r\nHost: " + host + "\r\n" + tinyLines(5000) + "\r\n", 431, "length", "256 header lines", false},
		{"health", "GET /health HTTP/1.1\r\nHost: refused.example\r\n\r\n", 403, "host", "", false},
	} {
		for _, before := range []int{0, 1} {
			t.Run(fmt.Sprintf("%s after %d requests", tc.name, before), func(t *testing.T) {
				s := p.connect(t, host)
				// Together: they are pipelined.
				res, body := s.ask(t, strings.Repeat(good, before)+tc.text+good)
				if before > 0 {
					if res.StatusCode != http.StatusOK {
						t.Fatalf("the good request: %s %q", res.Status, body)
					}
					res, body = s.ask(t, "")
				}
				if res.StatusCode != tc.status {
					t.Errorf("%s %q, want %d", res.Status, body, tc.status)
				}
				n, last := p.log.refusals()
				if last.Scanner != tc.scanner || !strings.Contains(last.Reason, tc.reason) || last.Destination() != host {
					t.Errorf("refusal %d is logged as %+v, want %s %q", n, last, tc.scanner, tc.reason)
				}
				if !strings.HasPrefix(last.Reason, "malformed request") && !strings.Contains(body, last.Reason) {
					t.Errorf("the response is %q, the log has %q", body, last.Reason)
				}
				next, err := s.r.Peek(1) // the response to the last request, or EOF
				if open := err == nil; open != tc.open {
					t.Errorf("after it: %q, %v; want an open connection: %v", next, err, tc.open)
				}
			})
		}
	}
	for _, e := range p.log.events(EventForwardOpen) {
		if want := "http://" + host + "/good"; e.URL != want {
			t.Errorf("a request was forwarded to %s", e.URL)
		}
	}
	if n := len(p.log.events(EventTunnelOpen)); n > 0 {
		t.Errorf("%d tunnels were relayed", n)
	}
}

// CONNECT inside a tunnel does not reach the proxy, nor a server.
func TestConnectInTunnel(t *testing.T) {
	port := webServer(t)
	host := fmt.Sprintf("a.example.com:%d", port)
	p := startProxy(t, Config{Entries: Entries{Allow: []string{host}}})
	s := p.connect(t, host)
	s.ask(t, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
	if res, body := s.ask(t, "CONNECT "+host+" HTTP/1.1\r\nHost: "+host+"\r\n\r\n"); res.StatusCode != http.StatusBadRequest {
		t.Errorf("%s %q", res.Status, body)
	}
	s = p.connect(t, host)
	if _, err := fmt.Fprintf(s, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", host); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(s); err != nil || len(got) > 0 {
		t.Errorf("%q, %v; want a closed connection", got, err)
	}
}

// The policy of each request in a tunnel is the current one.
func TestHTTPInTunnelAfterReload(t *testing.T) {
	port := webServer(t)
	host := fmt.Sprintf("a.example.com:%d", port)
	p := startProxy(t, Config{Entries: Entries{Allow: []string{host}}})
	s := p.connect(t, host)
	get := "GET / HTTP/1.1\r\nHost: " + host + "\r\n\r\n"
	if res, body := s.ask(t, get); res.StatusCode != http.StatusOK {
		t.Fatalf("%s %q", res.Status, body)
	}
	if err := p.Reload(testConfig(Config{})); err != nil {
		t.Fatal(err)
	}
	if res, body := s.ask(t, get); res.StatusCode != http.StatusForbidden || !strings.Contains(body, "not in allowlist") {
		t.Errorf("%s %q", res.Status, body)
	}
}

// An ssh entry's tunnel is relayed as it is, HTTP too: the proxy has no say in it.
func TestHTTPInSSHTunnel(t *testing.T) {
	port := serveTCP(t, echo)
	p := startProxy(t, Config{Entries: Entries{SSH: []string{fmt.Sprintf("a.example.com:%d", port)}}})
	p.connect(t, fmt.Sprintf("a.example.com:%d", port)).roundTrip(t, "GET / HTTP/1.1\r\nHost: other\r\n\r\n")
}

// While a policy is learned, plain HTTP in a tunnel is served as well, and a request
// for another host is noted and goes to that.
func TestLearnHTTPInTunnel(t *testing.T) {
	port := webServer(t)
	host, other := fmt.Sprintf("a.example.com:%d", port), fmt.Sprintf("other.example.com:%d", port)
	p := startProxy(t, Config{Learn: true})
	s := p.connect(t, host)
	for _, h := range []string{host, other} {
		if res, body := s.ask(t, "GET /x HTTP/1.1\r\nHost: "+h+"\r\n\r\n"); body != "GET "+h+" /x " {
			t.Errorf("%s: %s %q", h, res.Status, body)
		}
	}
	for target, scanner := range map[string]string{host: "host", other: "allowlist"} {
		p.log.wait(t, scanner+" of "+target, func(e Entry) bool {
			return e.Event == EventWouldBlock && e.Target == target && e.Scanner == scanner
		})
	}
	_, _ = s.ask(t, "GET /x HTTP/1.1\r\nHost: private.example\r\n\r\n")
	if e := p.log.waitEvent(t, EventBlocked); e.Scanner != "ssrf" {
		t.Errorf("logged %+v", e)
	}
}

// A tunnel of plain HTTP counts as one connection, before and after its first
// request, and ends with the proxy.
func TestHTTPTunnelsAreCounted(t *testing.T) {
	const tunnels = 3
	port := webServer(t)
	host := fmt.Sprintf("a.example.com:%d", port)
	p := startProxy(t, Config{MaxConnections: tunnels, Entries: Entries{Allow: []string{host}}})
	get := "GET / HTTP/1.1\r\nHost: " + host + "\r\n\r\n"
	var open []*stream
	for range tunnels {
		s := p.connect(t, host)
		open = append(open, s)
		if res, body := s.ask(t, get); res.StatusCode != http.StatusOK {
			t.Fatalf("%s %q", res.Status, body)
		}
	}
	p.wantStatus(t, host, http.StatusTooManyRequests)
	if res, body := open[0].ask(t, get); res.StatusCode != http.StatusOK {
		t.Errorf("%s %q", res.Status, body)
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	for _, s := range open {
		if got, err := io.ReadAll(s); err != nil || len(got) > 0 {
			t.Errorf("%q, %v; want a closed connection", got, err)
		}
	}
}
