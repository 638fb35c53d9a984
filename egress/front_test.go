package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/egress/inject"
	secrets "github.com/bot-bottle/bottle/internal/secret"
)

// frontScene is a process in front of a proxy without secrets. It has one for example.com,
// which the proxy allows, and one for a host that the proxy refuses.
type frontScene struct {
	*injectScene
	front  *Front
	log    *eventLog // of the front; the proxy's is behind
	behind *eventLog
	addr   string
}

const refusedHost = "refused.example.com"

func newFrontScene(t *testing.T) *frontScene {
	t.Helper()
	s := &frontScene{injectScene: prepareInjectScene(t), log: newEventLog()}
	plain := s.config
	plain.Inject = nil
	proxy := startProxy(t, plain)
	s.behind = proxy.log
	ca, err := inject.NewCA([]string{"example.com", refusedHost})
	if err != nil {
		t.Fatal(err)
	}
	data, err := inject.Encode(ca, []inject.Secret{
		{Name: "TOKEN", Value: secrets.New(injectValue), Placeholder: s.placeholder, Hosts: []string{s.target("example.com")}},
		{Name: "OTHER", Value: secrets.New("another-long-value"), Placeholder: "another-placeholder", Hosts: []string{s.target(refusedHost)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(s.config.Inject.Secrets); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.config.Inject.Secrets, data, 0o400); err != nil {
		t.Fatal(err)
	}
	if s.front, err = NewFront(Config{Upstream: proxy.addr, Inject: s.config.Inject}, s.log); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.front.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	tr := s.client.Transport.(*http.Transport)
	tr.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: s.addr})
	tr.TLSClientConfig.RootCAs.AppendCertsFromPEM(ca.CertPEM())
	return s
}

// TestFront: tunnels to hosts with secrets are terminated in front of a proxy, which still
// decides; it serves all else, and nothing is in both logs.
func TestFront(t *testing.T) {
	s := newFrontScene(t)
	if got := s.get(t, "example.com"); !strings.HasPrefix(got, "200 012345 bottle ") {
		t.Errorf("got %s", got)
	}
	if got := s.get(t, "EXAMPLE.com."); !strings.HasPrefix(got, "200 012345 bottle ") {
		t.Errorf("another spelling: got %s", got)
	}
	if got := s.get(t, "other.example.com"); strings.HasPrefix(got, "200 012345") || strings.Contains(got, " bottle ") || !strings.HasPrefix(got, "200 ") {
		t.Errorf("a host without a secret: got %s", got)
	}
	for _, host := range []string{refusedHost, "nowhere.example.com"} {
		if got := s.get(t, host); !strings.Contains(got, "Forbidden") {
			t.Errorf("%s: got %s", host, got)
		}
	}
	for _, want := range []string{s.target(refusedHost), s.target("nowhere.example.com")} {
		s.behind.wait(t, want, func(e Entry) bool { return e.Denied() && e.Target == want })
	}
	e := s.log.waitEvent(t, EventRequest)
	if !slices.Equal(e.Secrets, []string{"TOKEN"}) || e.Status != 200 || e.Target != s.target("example.com") {
		t.Errorf("logged %+v", e)
	}
	s.behind.wait(t, "tunnel", func(e Entry) bool { return e.Event == EventTunnelOpen && e.Target == s.target("example.com") })
	if e, _, ok := s.log.find(func(e Entry) bool { return e.Event != EventRequest }); ok {
		t.Errorf("also in the log of the front: %+v", e)
	}
}

// TestFrontPassesOn: what is not a tunnel to a host with a secret reaches the proxy as it
// was sent, also a second request on a connection, and its answer the client.
func TestFrontPassesOn(t *testing.T) {
	s := newFrontScene(t)
	for _, c := range []struct{ sent, want string }{
		{"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", `{"status":"healthy"`},
		{"GET http://nowhere.example.com/ HTTP/1.1\r\nHost: nowhere.example.com\r\n\r\n", "blocked: domain not in allowlist"},
		{"CONNECT nowhere.example.com HTTP/1.1\r\n\r\n", "400 Bad Request"},
		{"not HTTP\r\n\r\n", "400 Bad Request"},
		// A tunnel that is asked for later is not terminated. The client gets no secret into it.
		{"GET /health HTTP/1.1\r\nHost: x\r\n\r\nCONNECT " + s.target(refusedHost) + " HTTP/1.1\r\nHost: x\r\n\r\n", "CONNECT blocked: "},
	} {
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, c.sent); err != nil {
			t.Fatal(err)
		}
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(conn)
		if err != nil || !strings.Contains(string(got), c.want) {
			t.Errorf("%q: got %q, %v, want %q", c.sent, got, err, c.want)
		}
		_ = conn.Close()
	}
}

// TestFrontDenies: a request in an open tunnel whose connection is used up is for the proxy
// to decide again, and is logged by it alone.
func TestFrontDenies(t *testing.T) {
	s := newFrontScene(t)
	if _, err := s.front.dial(t.Context(), s.target(refusedHost)); err == nil || !strings.Contains(err.Error(), "the proxy answered 403: CONNECT blocked: ") {
		t.Errorf("got %v", err)
	}
	s.front.report(inject.Event{Kind: inject.KindUpstream, Err: fmt.Errorf("cannot use it: %w", &behindError{status: 403})})
	if e, _, ok := s.log.find(func(Entry) bool { return true }); ok {
		t.Errorf("logged twice: %+v", e)
	}
	s.front.report(inject.Event{Kind: inject.KindUpstream, Target: "x:443", Err: io.ErrUnexpectedEOF})
	s.log.waitEvent(t, EventError)
}

// TestFrontReloads: a reload takes over new values, and says so.
func TestFrontReloads(t *testing.T) {
	s := newFrontScene(t)
	text := fmt.Sprintf(`{"listen": "127.0.0.1:1", "upstream": "127.0.0.1:2", "inject": {"secrets": %q, "roots": %q}}`, s.config.Inject.Secrets, s.config.Inject.Roots)
	file := t.TempDir() + "/front.json"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(s.config.Inject.Secrets)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(s.config.Inject.Secrets); err != nil {
		t.Fatal(err)
	}
	changed := strings.ReplaceAll(string(data), `012345"`, `543210"`)
	if err := os.WriteFile(s.config.Inject.Secrets, []byte(changed), 0o400); err != nil {
		t.Fatal(err)
	}
	s.front.reload(file, io.Discard)
	s.log.waitEvent(t, EventReload)
	if got := s.get(t, "example.com"); !strings.HasPrefix(got, "200 543210 ") {
		t.Errorf("got %s", got)
	}
	if err := os.Remove(s.config.Inject.Secrets); err != nil {
		t.Fatal(err)
	}
	s.front.reload(file, io.Discard)
	if e := s.log.waitEvent(t, EventError); e.Target != "" || !strings.Contains(e.Reason, "secrets not reloaded") {
		t.Errorf("logged %+v", e)
	}
}

// TestFrontWithoutProxy: without the proxy nothing is reached, and a client is told.
func TestFrontWithoutProxy(t *testing.T) {
	s := newFrontScene(t)
	s.front.upstream = "127.0.0.1:1"
	for _, sent := range []string{"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", "CONNECT " + s.target("example.com") + " HTTP/1.1\r\nHost: x\r\n\r\n"} {
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, sent); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != http.StatusBadGateway {
			t.Errorf("%q: %s", sent, res.Status)
		}
		_, _ = res.Body.Close(), conn.Close()
	}
	s.log.wait(t, "error", func(e Entry) bool { return e.Event == EventError && e.Target == proxyTarget })
}

// eagerConn sends a CONNECT together with the first data of the tunnel.
type eagerConn struct {
	net.Conn
	connect string
	r       *bufio.Reader
	opened  bool
}

func (c *eagerConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(append([]byte(c.connect), p...))
	n, c.connect = max(n-len(c.connect), 0), ""
	return n, err
}

func (c *eagerConn) Read(p []byte) (int, error) {
	if !c.opened {
		res, err := http.ReadResponse(c.r, &http.Request{Method: http.MethodConnect})
		if err != nil {
			return 0, err
		}
		_ = res.Body.Close() // the tunnel begins after the head
		if res.StatusCode != http.StatusOK {
			return 0, fmt.Errorf("CONNECT: %s", res.Status)
		}
		c.opened = true
	}
	return c.r.Read(p)
}

// TestFrontEarlyData: a client may begin its handshake before the tunnel is open.
func TestFrontEarlyData(t *testing.T) {
	s := newFrontScene(t)
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(waitTimeout))
	client := tls.Client(&eagerConn{
		Conn: conn, connect: "CONNECT " + s.target("example.com") + " HTTP/1.1\r\nHost: x\r\n\r\n", r: bufio.NewReader(conn),
	}, &tls.Config{ServerName: "example.com", RootCAs: s.client.Transport.(*http.Transport).TLSClientConfig.RootCAs})
	if _, err := fmt.Fprint(client, "GET / HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(client), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close() // only the head is of interest
	if issuer := client.ConnectionState().PeerCertificates[0].Issuer.String(); res.StatusCode != http.StatusOK || !strings.Contains(issuer, "bottle") {
		t.Errorf("%s, certificate of %s", res.Status, issuer)
	}
}
