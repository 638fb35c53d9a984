package egress

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func (l *eventLog) refusals() (n int, last Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.entries {
		if e.Denied() {
			n, last = n+1, e
		}
	}
	return n, last
}

// Every kind of refusal logs one line, including those by the HTTP server before
// a request reaches the handler.
func TestEveryRefusalIsLogged(t *testing.T) {
	port := serveTCP(t, echo)
	p := startProxy(t, Config{Entries: Entries{Allow: []string{
		"example.com", "private.example", "lost.example", fmt.Sprintf("a.example.com:%d", port),
	}}})
	for name, c := range map[string]struct{ text, scanner string }{
		"refused host":     {"CONNECT refused.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", "allowlist"},
		"refused port":     {"CONNECT example.com:22 HTTP/1.1\r\nHost: x\r\n\r\n", "port"},
		"private address":  {"CONNECT private.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", "ssrf"},
		"unknown name":     {"CONNECT lost.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", "dns"},
		"no host":          {"CONNECT :443 HTTP/1.1\r\nHost: x\r\n\r\n", "parser"},
		"refused URL":      {"GET http://refused.example/ HTTP/1.1\r\nHost: x\r\n\r\n", "allowlist"},
		"secret":           {"GET http://example.com/" + testSecret + " HTTP/1.1\r\nHost: x\r\n\r\n", "dlp"},
		"long URL":         {"GET http://example.com/" + strings.Repeat("x", maxURL) + " HTTP/1.1\r\nHost: x\r\n\r\n", "length"},
		"websocket":        {"GET http://example.com/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "websocket"},
		"other scheme":     {"GET ftp://example.com/ HTTP/1.1\r\nHost: x\r\n\r\n", "scheme"},
		"no proxy request": {"GET / HTTP/1.1\r\nHost: refused.example\r\n\r\n", "parser"},
		"asterisk form":    {"OPTIONS * HTTP/1.1\r\nHost: refused.example\r\n\r\n", "parser"},
		// The rest is refused by the HTTP server itself.
		"two hosts":        {"GET http://refused.example/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "parser"},
		"escaped host":     {"CONNECT refused%2eexample:443 HTTP/1.1\r\nHost: x\r\n\r\n", "parser"},
		"no HTTP":          {"SSH-2.0-x\r\n\r\n", "parser"},
		"NUL in target":    {"CONNECT refused.example\x00:443 HTTP/1.1\r\nHost: x\r\n\r\n", "parser"},
		"no Host":          {"GET http://refused.example/ HTTP/1.1\r\n\r\n", "parser"},
		"HTTP/3.0":         {"GET http://refused.example/ HTTP/3.0\r\nHost: x\r\n\r\n", "parser"},
		"unknown encoding": {"POST http://refused.example/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", "parser"},
		"header too large": {"GET http://refused.example/ HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 80<<10) + "\r\n\r\n", "length"},
		"unknown Expect":   {"POST http://refused.example/ HTTP/1.1\r\nHost: x\r\nExpect: unknown\r\nContent-Length: 1\r\n\r\n", "parser"},
	} {
		before, _ := p.log.refusals()
		method, _, _ := strings.Cut(c.text, " ")
		res, _, _ := p.raw(t, method, c.text)
		if res.StatusCode < 400 {
			t.Errorf("%s: %s", name, res.Status)
		}
		n, last := p.log.refusals()
		if n != before+1 || last.Scanner != c.scanner || last.Reason == "" || last.Verdict() != VerdictRefused {
			t.Errorf("%s: %d lines, the last one %+v; want one from %s", name, n-before, last, c.scanner)
		}
		if last.Destination() == "" {
			t.Errorf("%s: no destination: %+v", name, last)
		}
	}
	// In a tunnel, refusals are logged after the response and before the close.
	for name, c := range map[string]string{"other server": string(hello(t, "refused.example")), "not TLS": "SSH-2.0-x\r\n"} {
		before, _ := p.log.refusals()
		tunnel := p.connect(t, fmt.Sprintf("a.example.com:%d", port))
		if _, err := io.WriteString(tunnel, c); err != nil {
			t.Fatal(err)
		}
		_, _ = io.ReadAll(tunnel) // a reset is fine, too
		if n, last := p.log.refusals(); n != before+1 || last.Scanner != "sni" {
			t.Errorf("%s: %d lines, the last one %+v", name, n-before, last)
		}
	}
}

// What follows on the connection of a request is refused with a line, too: together
// with the request, or after its response; whether the request was refused or not.
func TestGarbageAfterRequestIsLogged(t *testing.T) {
	port := webServer(t)
	p := startProxy(t, Config{Entries: Entries{Allow: []string{fmt.Sprintf("a.example.com:%d", port)}}})
	requests := map[string]string{
		"served":       fmt.Sprintf("GET http://a.example.com:%d/ HTTP/1.1\r\nHost: x\r\n\r\n", port),
		"with a body":  fmt.Sprintf("POST http://a.example.com:%d/ HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nxx", port),
		"refused":      "GET http://refused.example/ HTTP/1.1\r\nHost: x\r\n\r\n",
		"CONNECT":      "CONNECT refused.example:443 HTTP/1.1\r\nHost: x\r\n\r\n",
		"no proxy":     "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"health check": "GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
	}
	for name, request := range requests {
		for _, garbage := range []string{"garbage\r\n\r\n", "xx\r\n", "\x16\x03\x01\x00\x05\r\n", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"} {
			for _, later := range []bool{false, true} {
				before, _ := p.log.refusals()
				first := request
				if !later {
					first += garbage
				}
				_, _, s := p.raw(t, http.MethodGet, first)
				if n, _ := p.log.refusals(); n > before+1 && later {
					t.Fatalf("%s: %d lines of one request", name, n-before)
				}
				before, _ = p.log.refusals()
				if later {
					if _, err := io.WriteString(s, garbage); err != nil {
						t.Fatal(err)
					}
				} else {
					before = 0 // it may have been refused already
				}
				answer, err := io.ReadAll(s)
				if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 400 ") {
					t.Errorf("%s, then %q (later: %v): %v, %q", name, garbage, later, err, answer)
				}
				n, last := p.log.refusals()
				if n <= before || last.Scanner != "parser" || !strings.HasPrefix(last.Reason, "malformed request: 400") {
					t.Errorf("%s, then %q (later: %v): %d new lines, the last one %+v", name, garbage, later, n-before, last)
				}
				p.log.forget()
			}
		}
	}
}

// forget drops all entries.
func (l *eventLog) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = nil
}

// A refusal of a request with a body does not wait for the body.
func TestRefusalBeforeBody(t *testing.T) {
	p := startProxy(t, Config{})
	for _, length := range []string{"Content-Length: 5", "Transfer-Encoding: chunked"} {
		res, body, _ := p.raw(t, http.MethodPost, "POST http://refused.example/ HTTP/1.1\r\nHost: x\r\n"+length+"\r\n\r\n")
		if res.StatusCode != http.StatusForbidden || !res.Close {
			t.Errorf("%s: %s %q", length, res.Status, body)
		}
	}
}

// A flood of refusals by many clients is logged without exception, as complete
// lines in files within the size limit.
func TestFloodOfRefusalsIsLogged(t *testing.T) {
	const clients, each = 40, 100
	path := filepath.Join(t.TempDir(), "egress.log")
	in, out := io.Pipe()
	kept := make(chan error, 1)
	go func() { kept <- KeepLog(path, nil, in) }()
	p := startProxy(t, Config{})
	p.Server.log.mu.Lock()
	p.Server.log.w = out
	p.Server.log.mu.Unlock()
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			c, err := net.Dial("tcp", p.addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = c.Close() }()
			br := bufio.NewReader(c)
			for j := range each {
				_, err := fmt.Fprintf(c, "CONNECT flood-%d-%d.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", i, j)
				if err != nil {
					t.Error(err)
					return
				}
				res, err := http.ReadResponse(br, &http.Request{Method: http.MethodConnect})
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
			}
		})
	}
	wg.Wait()
	_ = out.Close()
	if err := <-kept; err != nil {
		t.Fatal(err)
	}
	l, err := OpenLog(t.Context(), path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	seen := map[string]bool{}
	for e, err := range ParseLog(l) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Denied() {
			seen[e.Target] = true
		}
	}
	if len(seen) != clients*each {
		t.Errorf("%d of %d refusals are in the log", len(seen), clients*each)
	}
}

// Clients over all limits are closed without a response, but with a log line.
func TestClosedClientsAreLogged(t *testing.T) {
	p := startProxy(t, Config{MaxConnections: 1})
	for range 1 + spareConnections + 1 {
		p.dial(t)
	}
	e := p.log.wait(t, "line of a closed client", func(e Entry) bool { return strings.Contains(e.Reason, "closed without a response") })
	if e.Scanner != "ratelimit" || !e.Denied() {
		t.Errorf("logged %+v", e)
	}
}

// A proxy whose log has no reader any more exits before it forwards data.
func TestProxyWithoutLogEnds(t *testing.T) {
	got := make(chan int, 1)
	port := serveTCP(t, func(c *net.TCPConn) {
		n, _ := c.Read(make([]byte, 100))
		got <- n
	})
	l := listen(t)
	addr := l.Addr().String()
	_ = l.Close()
	config := filepath.Join(t.TempDir(), "proxy.json")
	text := fmt.Sprintf(`{"listen": %q, "ssh": ["127.0.0.1:%d"], "allow_private": ["127.0.0.0/8"]}`, addr, port)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), proxyConfigEnv+"="+config)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.Contains(line, EventStartup) {
		t.Fatalf("%q, %v", line, err)
	}
	_ = out.Close()
	p := &testProxy{addr: addr}
	tunnel := p.connect(t, fmt.Sprintf("127.0.0.1:%d", port))
	_, _ = io.WriteString(tunnel, "not logged") // the proxy may have exited
	_, _ = io.ReadAll(tunnel)
	err = cmd.Wait()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGPIPE {
		t.Errorf("the proxy exited with %v", err)
	}
	if n := <-got; n > 0 {
		t.Errorf("%d bytes were forwarded without a log line", n)
	}
}
