package egress

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

// events returns what was logged of one event.
func (l *eventLog) events(event string) (out []Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.entries {
		if e.Event == event {
			out = append(out, e)
		}
	}
	return out
}

// A plain request is in the log before its first byte leaves, however it ends: by a
// client that exits in the middle of its body, a server that does not respond, or
// one that breaks off.
func TestForwardIsLoggedFirst(t *testing.T) {
	const (
		respond  = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
		truncate = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart"
	)
	for name, tc := range map[string]struct {
		request, response string
		leave             bool // the client closes when the request has arrived
		status            int
		reason            string // a part of it
	}{
		"response":              {"GET %s HTTP/1.1\r\nHost: x\r\n\r\n", respond, false, 200, ""},
		"unfinished body":       {"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n", "", true, 0, "from client"},
		"client leaves":         {"GET %s HTTP/1.1\r\nHost: x\r\n\r\n", "", true, 0, "client closed the connection"},
		"no response":           {"GET %s HTTP/1.1\r\nHost: x\r\n\r\n", "close", false, 502, "no response from example.com"},
		"not HTTP":              {"GET %s HTTP/1.1\r\nHost: x\r\n\r\n", "SSH-2.0-x\r\n", false, 502, "malformed HTTP"},
		"response is truncated": {"GET %s HTTP/1.1\r\nHost: x\r\n\r\n", truncate, false, 200, "from server"},
	} {
		t.Run(name, func(t *testing.T) {
			var p *testProxy
			opened := make(chan int, 1)
			port := serveTCP(t, func(c *net.TCPConn) {
				_, _ = bufio.NewReader(c).ReadByte()
				opened <- len(p.log.events(EventForwardOpen))
				if tc.response == "" {
					_, _ = io.Copy(io.Discard, c)
				} else if tc.response != "close" {
					_, _ = io.WriteString(c, tc.response)
				}
			})
			url := fmt.Sprintf("http://example.com:%d/x?k=v", port)
			p = startProxy(t, Config{Entries: Entries{Allow: []string{fmt.Sprintf("example.com:%d", port)}}})
			c := p.dial(t)
			if _, err := fmt.Fprintf(c, tc.request, url); err != nil {
				t.Fatal(err)
			}
			if n := <-opened; n != 1 {
				t.Errorf("%d lines were logged before the first byte was sent, want 1", n)
			}
			if tc.leave {
				_ = c.Close()
			}
			e := p.log.waitEvent(t, EventForwardClose)
			if e.Status != tc.status || !strings.Contains(e.Reason, tc.reason) || tc.reason == "" && e.Reason != "" {
				t.Errorf("the end is logged as %+v, want status %d and %q", e, tc.status, tc.reason)
			}
			_ = c.Close()
			if err := p.stop(); err != nil {
				t.Fatal(err)
			}
			want := HostSummary{Destination: fmt.Sprintf("example.com:%d", port), Requests: 1, Bytes: e.Bytes}
			got, err := Summarize(func(yield func(Entry, error) bool) {
				for _, e := range p.log.entries {
					if !yield(e, nil) {
						return
					}
				}
			})
			if err != nil || len(got) != 1 || got[0] != want {
				t.Errorf("the summary is %+v, %v; want %+v", got, err, want)
			}
		})
	}
}

// A request that reaches nobody has the line of its refusal, and no other.
func TestForwardNotSent(t *testing.T) {
	closed := listen(t)
	port := portOf(closed.Addr().String())
	_ = closed.Close()
	p := startProxy(t, Config{Entries: Entries{Allow: []string{fmt.Sprintf("example.com:%d", port)}}})
	res, body, _ := p.raw(t, http.MethodGet, fmt.Sprintf("GET http://example.com:%d/ HTTP/1.1\r\nHost: x\r\n\r\n", port))
	if res.StatusCode != http.StatusBadGateway {
		t.Errorf("%s %s", res.Status, body)
	}
	if n := len(p.log.events(EventError)); n != 1 || len(p.log.entries) != n {
		t.Errorf("logged %+v", p.log.entries)
	}
}

// A client that reuses its connection, and a proxy that reuses one to the server,
// leave a line of each request, too.
func TestForwardLogsReusedConnections(t *testing.T) {
	port := serveTCP(t, func(c *net.TCPConn) {
		for br := bufio.NewReader(c); ; {
			req, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(req.URL.Path), req.URL.Path)
		}
	})
	p := startProxy(t, Config{Entries: Entries{Allow: []string{fmt.Sprintf("example.com:%d", port)}}})
	c := p.dial(t)
	br := bufio.NewReader(c)
	const requests = 5
	for i := range requests {
		if _, err := fmt.Fprintf(c, "GET http://example.com:%d/%d HTTP/1.1\r\nHost: x\r\n\r\n", port, i); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
	}
	if n := len(p.log.events(EventForwardOpen)); n != requests {
		t.Errorf("%d lines of %d requests", n, requests)
	}
}

// A request that ends in a panic has a line.
func TestPanicIsLogged(t *testing.T) {
	p := startProxy(t, Config{Resolver: panicDNS{}, Entries: Entries{Allow: []string{"example.com"}}})
	c := p.dial(t)
	if _, err := io.WriteString(c, "CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || len(got) > 0 {
		t.Errorf("%q, %v; want a closed connection", got, err)
	}
	if e := p.log.waitEvent(t, EventError); !strings.Contains(e.Reason, "internal error: no resolver") {
		t.Errorf("logged %+v", e)
	}
}

type panicDNS struct{}

func (panicDNS) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	panic("no resolver")
}
