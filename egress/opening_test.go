package egress

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

func TestParseConnect(t *testing.T) {
	const host = "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n"
	for text, target := range map[string]string{
		host + "\r\n": "example.com:443",
		host + "User-Agent: curl/8.5.0\r\nProxy-Connection: Keep-Alive\r\nProxy-Authorization: Basic eDp5\r\n\r\nmore": "example.com:443",
		"CONNECT 192.0.2.1:22 HTTP/1.1\r\n\r\n":                      "192.0.2.1:22",
		"CONNECT EXAMPLE.com. HTTP/1.1\r\n\r\n":                      "EXAMPLE.com.",
		"":                                                           "",
		"CONNECT example.com:443 HTTP/1.1\r\n":                       "",
		"CONNECT example.com:443 HTTP/1.0\r\n\r\n":                   "",
		"CONNECT  example.com:443 HTTP/1.1\r\n\r\n":                  "",
		"CONNECT example.com:443 HTTP/1.1\n\n\r\n\r\n":               "",
		"CONNECT user@example.com:443 HTTP/1.1\r\n\r\n":              "",
		"CONNECT example.com:443/ HTTP/1.1\r\n\r\n":                  "",
		"CONNECT [::1]:443 HTTP/1.1\r\n\r\n":                         "",
		"CONNECT exa\rmple.com:443 HTTP/1.1\r\n\r\n":                 "",
		"connect example.com:443 HTTP/1.1\r\n\r\n":                   "",
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n":                          "",
		host + "Host: other.example\r\n\r\n":                         "",
		host + "Content-Length: 4\r\n\r\n":                           "",
		host + "transfer-encoding: chunked\r\n\r\n":                  "",
		host + "Expect: 100-continue\r\n\r\n":                        "",
		host + " folded\r\n\r\n":                                     "",
		host + "Na me: x\r\n\r\n":                                    "",
		host + "Na\rme: x\r\n\r\n":                                   "",
		host + "Name: \x80\r\n\r\n":                                  "",
		host + "\r" + "Name: x\r\n\r\n":                              "",
		host + ": x\r\n\r\n":                                         "",
		host + strings.Repeat("A: b\r\n", 60) + "\r\n":               "",
		"CONNECT example.com:443 HTTP/1.1\r\nHost: a b\r\n\r\n":      "",
		"CONNECT example.com:443 HTTP/1.1\r\nHost: [::1]:1\r\n\r\n":  "",
		"CONNECT example.com:443 HTTP/1.1\r\nUpgrade: h2c\r\n\r\n":   "",
		"CONNECT example.com:443 HTTP/1.1\r\nHost: a\x00b\r\n\r\n\r": "",
	} {
		if got, _, ok := parseConnect([]byte(text)); got != target && ok || ok != (target != "") {
			t.Errorf("%q: %q, %v; want %q", text, got, ok, target)
		}
	}
}

// FuzzParseConnect: what parseConnect accepts, Go's parser reads as the same request, which
// ends at the same place and has no body.
func FuzzParseConnect(f *testing.F) {
	f.Add([]byte("CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\nUser-Agent: x\r\n\r\n\x16\x03"))
	f.Add([]byte("CONNECT a HTTP/1.1\r\nA-b:\r\n\r\n"))
	f.Fuzz(func(t *testing.T, p []byte) {
		target, size, ok := parseConnect(p)
		if !ok {
			return
		}
		br := bufio.NewReader(bytes.NewReader(p))
		r, err := http.ReadRequest(br)
		if err != nil {
			t.Fatalf("%q: %v", p, err)
		}
		rest, err := io.ReadAll(br)
		if err != nil || !bytes.Equal(rest, p[size:]) {
			t.Errorf("%q: followed by %q (%v), want %q", p, rest, err, p[size:])
		}
		if r.Method != http.MethodConnect || r.RequestURI != target || r.ContentLength != 0 || len(r.TransferEncoding) > 0 || !r.ProtoAtLeast(1, 1) {
			t.Errorf("%q: target %q, read as %+v", p, target, r)
		}
		m := newHeadMeter("request", newMemory())
		m.count(p[:size])
		if err := m.settle(r.RequestURI, r.Header); err != nil || m.charge.n != 0 {
			t.Errorf("%q: costs %d (%v)", p, m.charge.n, err)
		}
	})
}

// TestRefusalOnce: a refused CONNECT is decided and logged once, and its connection serves
// the next request.
func TestRefusalOnce(t *testing.T) {
	p := startProxy(t, Config{Entries: Entries{Allow: []string{"lost.example"}}, MaxRequests: 2})
	for range 2 {
		res, _, s := p.raw(t, http.MethodConnect, "CONNECT lost.example:443 HTTP/1.1\r\nHost: x\r\n\r\n")
		if res.StatusCode != http.StatusForbidden || res.Close {
			t.Fatalf("%+v, want 403 on a connection that stays open", res)
		}
		if _, err := io.WriteString(s, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		next, err := http.ReadResponse(s.r, nil)
		if err != nil || next.StatusCode != http.StatusOK {
			t.Fatalf("next request: %+v (%v)", next, err)
		}
		_ = next.Body.Close()
	}
	// Each was counted once.
	if res, _, _ := p.raw(t, http.MethodConnect, "CONNECT lost.example:443 HTTP/1.1\r\nHost: x\r\n\r\n"); res.StatusCode != http.StatusTooManyRequests {
		t.Errorf("third request: %s, want 429", res.Status)
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	blocked := 0
	for _, e := range p.log.entries {
		if e.Event == EventBlocked {
			blocked++
		}
	}
	if blocked != 3 {
		t.Errorf("%d refusals in the log, want 3: %+v", blocked, p.log.entries)
	}
}

// waitingDNS answers no lookup before its context ends.
type waitingDNS struct{ started, ended chan struct{} }

func (d waitingDNS) LookupNetIP(ctx context.Context, _, _ string) ([]netip.Addr, error) {
	close(d.started)
	<-ctx.Done()
	close(d.ended)
	return nil, ctx.Err()
}

func TestClientLeavesWhileOpening(t *testing.T) {
	dns := waitingDNS{make(chan struct{}), make(chan struct{})}
	p := startProxy(t, Config{Entries: Entries{Allow: []string{"example.com"}}, Resolver: dns})
	c := p.dial(t)
	if _, err := io.WriteString(c, "CONNECT example.com:443 HTTP/1.1\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-dns.started
	select {
	case <-dns.ended:
		t.Fatal("the lookup ended while the client was waiting")
	default:
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-dns.ended:
	case <-time.After(waitTimeout):
		t.Error("the lookup goes on without a client")
	}
}

// TestHeadDeadline: the HTTP server does not give a client more time for its head than it
// had when it connected, but gives it time for the next request.
func TestHeadDeadline(t *testing.T) {
	l := listen(t)
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := &watchedConn{TCPConn: conn.(*net.TCPConn), head: newHeadMeter("request", newMemory()), headBy: time.Now().Add(-time.Second)}
	defer func() { _ = c.Close() }()
	later := time.Now().Add(time.Hour)
	if err := c.SetReadDeadline(later); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read of the first head: %v, want a timeout", err)
	}
	if err := errors.Join(c.SetReadDeadline(time.Time{}), c.SetReadDeadline(later)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprint(client, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Errorf("read of the next head: %v", err)
	}
}
