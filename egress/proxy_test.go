package egress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// waitTimeout bounds every wait in a test. No passing test waits this long.
const waitTimeout = 20 * time.Second

// fakeDNS resolves the names of a test. It is a Resolver.
type fakeDNS map[string][]string

func (d fakeDNS) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	texts, ok := d[host]
	if !ok {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	var addrs []netip.Addr
	for _, s := range texts {
		addrs = append(addrs, netip.MustParseAddr(s))
	}
	return addrs, nil
}

// testDNS is the default resolver of tests.
var testDNS = fakeDNS{
	"example.com.":        {"127.0.0.1"},
	"a.example.com.":      {"127.0.0.1"},
	"git.example.com.":    {"127.0.0.1"},
	"other.example.com.":  {"127.0.0.1"},
	"private.example.":    {"10.99.0.10"},
	"meta.example.":       {"169.254.169.254"},
	"mapped.example.":     {"::ffff:10.0.0.1"},
	"nat64.example.":      {"64:ff9b::a00:1"},
	"sixtofour.example.":  {"2002:a00:1::1"},
	"mixed.example.":      {"127.0.0.1", "10.0.0.1"},
	"platform.example.":   {"168.63.129.16"},
	"nothing.example.":    {},
	"unreachable.test.":   {"127.0.0.1"},
	"xn--bcher-kva.test.": {"127.0.0.1"},
}

// eventLog records the log of a proxy.
type eventLog struct {
	mu      sync.Mutex
	entries []Entry
	added   chan struct{} // closed and replaced for each entry
}

func newEventLog() *eventLog { return &eventLog{added: make(chan struct{})} }

func (l *eventLog) Write(p []byte) (int, error) {
	e, ok := parseEntry(p)
	if !ok {
		return 0, fmt.Errorf("not a log line: %q", p)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, e)
	close(l.added)
	l.added = make(chan struct{})
	return len(p), nil
}

func (l *eventLog) find(match func(Entry) bool) (Entry, <-chan struct{}, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.entries {
		if match(e) {
			return e, l.added, true
		}
	}
	return Entry{}, l.added, false
}

// wait returns the first entry that matches, now or later.
func (l *eventLog) wait(t *testing.T, what string, match func(Entry) bool) Entry {
	t.Helper()
	limit := time.After(waitTimeout)
	for {
		e, added, ok := l.find(match)
		if ok {
			return e
		}
		select {
		case <-added:
		case <-limit:
			t.Fatalf("no %s in the log: %+v", what, l.entries)
		}
	}
}

func (l *eventLog) waitEvent(t *testing.T, event string) Entry {
	t.Helper()
	return l.wait(t, event, func(e Entry) bool { return e.Event == event })
}

// testProxy is a proxy on loopback that serves until the test ends.
type testProxy struct {
	*Server
	addr string
	log  *eventLog
	stop func() error // idempotent; returns the result of Serve
}

// startProxy serves cfg. Loopback may be dialed. At the end of the test no
// goroutines may be left.
func startProxy(t *testing.T, cfg Config) *testProxy {
	t.Helper()
	checkGoroutines(t)
	cfg = testConfig(cfg)
	p := &testProxy{log: newEventLog()}
	var err error
	if p.Server, err = New(cfg, p.log); err != nil {
		t.Fatal(err)
	}
	l := listen(t)
	p.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- p.Serve(ctx, l) }()
	p.stop = sync.OnceValue(func() error {
		cancel()
		return <-served
	})
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return p
}

func testConfig(cfg Config) Config {
	if cfg.AllowPrivate == nil {
		cfg.AllowPrivate = []string{"127.0.0.0/8"}
	}
	if cfg.Resolver == nil {
		cfg.Resolver = testDNS
	}
	return cfg
}

// checkGoroutines fails the test if goroutines are left after all later cleanup
// functions have run.
func checkGoroutines(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		deadline := time.Now().Add(waitTimeout)
		for runtime.NumGoroutine() > before {
			if time.Now().After(deadline) {
				buf := make([]byte, 1<<20)
				t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
			}
			time.Sleep(5 * time.Millisecond) // the end of a goroutine cannot be awaited
		}
	})
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// serveTCP listens on a port, which it returns, and runs handle for each
// connection. All connections are closed at the end of the test.
func serveTCP(t *testing.T, handle func(*net.TCPConn)) (port int) {
	t.Helper()
	l := listen(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				handle(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return portOf(l.Addr().String())
}

// echo sends back what it receives, and ends when the client does.
func echo(c *net.TCPConn) {
	_, _ = io.Copy(c, c)
	_ = c.CloseWrite()
}

func portOf(addr string) int {
	return int(netip.MustParseAddrPort(addr).Port())
}

// dial opens a connection to a proxy. It is closed at the end of the test.
func (p *testProxy) dial(t *testing.T) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(waitTimeout)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// raw sends text on a new connection and returns the response, its body, and the
// connection with the data that follows the response.
func (p *testProxy) raw(t *testing.T, method, text string) (*reply, string, *stream) {
	t.Helper()
	c := p.dial(t)
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	s := &stream{TCPConn: c, r: bufio.NewReader(c)}
	res, err := http.ReadResponse(s.r, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("read response to %.80q: %v", text, err)
	}
	head := &reply{StatusCode: res.StatusCode, Status: res.Status, Header: res.Header, Close: res.Close}
	if method == http.MethodConnect && res.StatusCode == http.StatusOK {
		return head, "", s // the rest belongs to the tunnel
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("read response to %.80q: %v", text, err)
	}
	_ = res.Body.Close()
	return head, string(body), s
}

// reply is a response without its body.
type reply struct {
	StatusCode int
	Status     string
	Header     http.Header
	Close      bool
}

// stream is the client side of a tunnel.
type stream struct {
	*net.TCPConn
	r *bufio.Reader
}

func (s *stream) Read(p []byte) (int, error) { return s.r.Read(p) }

func (p *testProxy) connect(t *testing.T, target string) *stream {
	t.Helper()
	res, body, s := p.raw(t, http.MethodConnect, "CONNECT "+target+" HTTP/1.1\r\nHost: "+target+"\r\n\r\n")
	if res.StatusCode != http.StatusOK {
		t.Fatalf("CONNECT %s: %s: %s", target, res.Status, body)
	}
	return s
}

// roundTrip sends text and requires it to be echoed.
func (s *stream) roundTrip(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(s, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(s, got); err != nil {
		t.Fatalf("read echo: %v", err)
	}
	if !bytes.Equal(got, []byte(text)) {
		t.Fatalf("the echo is %q, want %q", got, text)
	}
}

// client returns an HTTP client that uses the proxy and trusts srv's certificate.
func (p *testProxy) client(t *testing.T, srv *httptest.Server) *http.Client {
	t.Helper()
	pool := x509.NewCertPool()
	if srv.Certificate() != nil {
		pool.AddCert(srv.Certificate())
	}
	tr := &http.Transport{
		Proxy:           http.ProxyURL(&url.URL{Scheme: "http", Host: p.addr}),
		TLSClientConfig: &tls.Config{RootCAs: pool},
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{
		Transport:     tr,
		Timeout:       waitTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}
