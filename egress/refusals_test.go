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

// Every way in which a request can be refused leaves one line, those included
// that the HTTP server refuses before anybody has seen a request.
func TestEveryRefusalIsLogged(t *testing.T) {
	port := serveTCP(t, echo)
	p := startProxy(t, Config{Entries: Entries{Allow: []string{
		"example.com", "private.example", "lost.example", fmt.Sprintf("a.example.com:%d", port),
	}}})
	for name, c := range map[string]struct{ text, scanner string }{
		"refused host":      {"CONNECT refused.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", "allowlist"},
		"refused port":      {"CONNECT example.com:22 HTTP/1.1\r\nHost: x\r\n\r\n", "port"},
		"private address":   {"CONNECT private.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", "ssrf"},
		"no such name":      {"CONNECT lost.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", "dns"},
		"no host":           {"CONNECT :443 HTTP/1.1\r\nHost: x\r\n\r\n", "parser"},
		"refused URL":       {"GET http://refused.example/ HTTP/1.1\r\nHost: x\r\n\r\n", "allowlist"},
		"secret":            {"GET http://example.com/" + testSecret + " HTTP/1.1\r\nHost: x\r\n\r\n", "dlp"},
		"long URL":          {"GET http://example.com/" + strings.Repeat("x", maxURL) + " HTTP/1.1\r\nHost: x\r\n\r\n", "length"},
		"websocket":         {"GET http://example.com/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "websocket"},
		"other scheme":      {"GET ftp://example.com/ HTTP/1.1\r\nHost: x\r\n\r\n", "scheme"},
		"no proxy request":  {"GET / HTTP/1.1\r\nHost: refused.example\r\n\r\n", "parser"},
		"all of the server": {"OPTIONS * HTTP/1.1\r\nHost: refused.example\r\n\r\n", "parser"},
		// From here on the HTTP server's own.
		"two hosts":        {"GET http://refused.example/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "parser"},
		"escaped host":     {"CONNECT refused%2eexample:443 HTTP/1.1\r\nHost: x\r\n\r\n", "parser"},
		"no HTTP":          {"SSH-2.0-x\r\n\r\n", "parser"},
		"a zero in it":     {"CONNECT refused.example\x00:443 HTTP/1.1\r\nHost: x\r\n\r\n", "parser"},
		"no Host":          {"GET http://refused.example/ HTTP/1.1\r\n\r\n", "parser"},
		"HTTP/3.0":         {"GET http://refused.example/ HTTP/3.0\r\nHost: x\r\n\r\n", "parser"},
		"unknown encoding": {"POST http://refused.example/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", "parser"},
		"a vast head":      {"GET http://refused.example/ HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 80<<10) + "\r\n\r\n", "parser"},
		"unknown Expect":   {"POST http://refused.example/ HTTP/1.1\r\nHost: x\r\nExpect: wonders\r\nContent-Length: 1\r\n\r\n", "parser"},
	} {
		before, _ := p.log.refusals()
		method, _, _ := strings.Cut(c.text, " ")
		res, _, _ := p.raw(t, method, c.text)
		if res.StatusCode < 400 {
			t.Errorf("%s: %s", name, res.Status)
		}
		n, last := p.log.refusals()
		if n != before+1 || last.Scanner != c.scanner || last.Reason == "" || last.Verdict() != VerdictRefused {
			t.Errorf("%s: %d lines, the last of them %+v; want one of %s", name, n-before, last, c.scanner)
		}
		if last.Destination() == "" {
			t.Errorf("%s: no destination: %+v", name, last)
		}
	}
	// In a tunnel the refusal comes after the answer, and the line before the end.
	for name, c := range map[string]string{"other server": string(hello(t, "refused.example")), "not TLS": "SSH-2.0-x\r\n"} {
		before, _ := p.log.refusals()
		tunnel := p.connect(t, fmt.Sprintf("a.example.com:%d", port))
		if _, err := io.WriteString(tunnel, c); err != nil {
			t.Fatal(err)
		}
		_, _ = io.ReadAll(tunnel) // a reset is an end too
		if n, last := p.log.refusals(); n != before+1 || last.Scanner != "sni" {
			t.Errorf("%s: %d lines, the last of them %+v", name, n-before, last)
		}
	}
}

// A flood of refusals, by more clients than the proxy has room for, is logged to
// the last one: whole lines in files that the log's bound holds.
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
		t.Errorf("%d refusals are in the log, of %d", len(seen), clients*each)
	}
}

// Clients beyond all limits are closed without an answer, and not without a line.
func TestClosedClientsAreLogged(t *testing.T) {
	p := startProxy(t, Config{MaxConnections: 1})
	for range 1 + spareConnections + 1 {
		p.dial(t)
	}
	e := p.log.wait(t, "line of a closed client", func(e Entry) bool { return strings.Contains(e.Reason, "closed without an answer") })
	if e.Scanner != "ratelimit" || !e.Denied() {
		t.Errorf("logged %+v", e)
	}
}

// A proxy whose log nobody reads any more ends before it lets anything through.
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
	_, _ = io.WriteString(tunnel, "what nobody would see") // it may have ended
	_, _ = io.ReadAll(tunnel)
	err = cmd.Wait()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGPIPE {
		t.Errorf("the proxy ended with %v", err)
	}
	if n := <-got; n > 0 {
		t.Errorf("%d bytes went out without a line", n)
	}
}
