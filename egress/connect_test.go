package egress

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"code.dny.dev/ssrf"
)

func TestConnectRefusals(t *testing.T) {
	closed := listen(t)
	dead := portOf(closed.Addr().String())
	_ = closed.Close()
	p := startProxy(t, Config{Entries: Entries{
		Allow: []string{
			"example.com", "*.wild.example", "only.example:8443", "198.51.101.7", "127.0.0.1:1",
			"private.example", "meta.example", "mapped.example", "nat64.example", "sixtofour.example",
			"mixed.example", "platform.example", "nothing.example", "lost.example", "10.0.0.1", "169.254.169.254",
			"::1", "fd00::1", "64:ff9b::a00:1", "0.0.0.0", fmt.Sprintf("unreachable.test:%d", dead),
		},
	}})
	for _, tc := range []struct {
		target string
		status int
		line   string // the first line of the body; "" for responses of the HTTP server
	}{
		{"refused.example:443", 403, "CONNECT blocked: domain not in allowlist: refused.example"},
		{"REFUSED.Example.:443", 403, "CONNECT blocked: domain not in allowlist: refused.example"},
		{"sub.example.com:443", 403, "CONNECT blocked: domain not in allowlist: sub.example.com"},
		{"xexample.com:443", 403, "CONNECT blocked: domain not in allowlist: xexample.com"},
		{"example.com.evil.test:443", 403, "CONNECT blocked: domain not in allowlist: example.com.evil.test"},
		{"awild.example:443", 403, "CONNECT blocked: domain not in allowlist: awild.example"},
		{"example.com:22", 403, "CONNECT blocked: port not in allowlist: example.com:22"},
		{"only.example:443", 403, "CONNECT blocked: port not in allowlist: only.example:443"},
		{"198.51.101.8:443", 403, "CONNECT blocked: domain not in allowlist: 198.51.101.8"},
		{"[2001:4860::1]:443", 403, "CONNECT blocked: domain not in allowlist: 2001:4860::1"},
		{"[::ffff:8.8.8.8]:443", 403, "CONNECT blocked: domain not in allowlist: 8.8.8.8"},
		{"private.example:443", 403, "CONNECT blocked: SSRF: private.example resolves to 10.99.0.10, a private or special address"},
		{"meta.example:80", 403, "CONNECT blocked: SSRF: meta.example resolves to 169.254.169.254, a private or special address"},
		{"mapped.example:80", 403, "CONNECT blocked: SSRF: mapped.example resolves to 10.0.0.1, a private or special address"},
		{"nat64.example:80", 403, "CONNECT blocked: SSRF: nat64.example resolves to 64:ff9b::a00:1, a private or special address"},
		{"sixtofour.example:80", 403, "CONNECT blocked: SSRF: sixtofour.example resolves to 2002:a00:1::1, a private or special address"},
		{"mixed.example:80", 403, "CONNECT blocked: SSRF: mixed.example resolves to 10.0.0.1, a private or special address"},
		{"platform.example:80", 403, "CONNECT blocked: SSRF: platform.example resolves to 168.63.129.16, a private or special address"},
		{"10.0.0.1:80", 403, "CONNECT blocked: SSRF: 10.0.0.1 is a private or special address"},
		{"[::ffff:10.0.0.1]:80", 403, "CONNECT blocked: SSRF: 10.0.0.1 is a private or special address"},
		{"169.254.169.254:80", 403, "CONNECT blocked: SSRF: 169.254.169.254 is a private or special address"},
		{"0.0.0.0:80", 403, "CONNECT blocked: 0.0.0.0 is the sandbox's own address: connect to it without the proxy"},
		{"[::1]:80", 403, "CONNECT blocked: ::1 is the sandbox's own address: connect to it without the proxy"},
		{"[fd00::1]:80", 403, "CONNECT blocked: SSRF: fd00::1 is a private or special address"},
		{"[64:ff9b::a00:1]:80", 403, "CONNECT blocked: SSRF: 64:ff9b::a00:1 is a private or special address"},
		{"lost.example:443", 403, "CONNECT blocked: DNS lookup of lost.example failed: no such host"},
		{"nothing.example:443", 403, "CONNECT blocked: DNS lookup of nothing.example failed: no addresses"},
		{fmt.Sprintf("unreachable.test:%d", dead), 502, fmt.Sprintf("cannot connect to unreachable.test:%d: dial tcp 127.0.0.1:%[1]d: connect: connection refused", dead)},
		{"2130706433:80", 400, `CONNECT blocked: invalid host "2130706433": looks like a number: expected an IPv4 address in dotted decimal`},
		{"0x7f.1:80", 400, `CONNECT blocked: invalid host "0x7f.1": looks like a number: expected an IPv4 address in dotted decimal`},
		{"example.com", 400, `CONNECT blocked: invalid target "example.com": expected HOST:PORT`},
		{"example.com:", 400, `CONNECT blocked: invalid port "" (1 to 65535)`},
		{"example.com:0443", 400, `CONNECT blocked: invalid port "0443" (1 to 65535)`},
		{":443", 400, `CONNECT blocked: invalid host "": empty host`},
		{"user@example.com:443", 400, `CONNECT blocked: invalid target "***@example.com:443": expected HOST:PORT`},
		{"/example.com:443", 400, `CONNECT blocked: invalid target "/example.com:443": expected HOST:PORT`},
		{"example.com:443/path", 400, `CONNECT blocked: invalid target "example.com:443/path": expected HOST:PORT`},
		{"http://example.com:443", 400, ""},
		{"example.com\x00.evil.test:443", 400, ""},
		{"example.com\r.evil.test:443", 400, ""},
		{"example%2ecom:443", 400, ""},
	} {
		res, body, _ := p.raw(t, http.MethodConnect, "CONNECT "+tc.target+" HTTP/1.1\r\nHost: x\r\n\r\n")
		if res.StatusCode != tc.status {
			t.Errorf("CONNECT %q: %s: %s, want %d", tc.target, res.Status, body, tc.status)
		}
		if tc.line == "" {
			continue
		}
		if got := firstLine(body); got != tc.line {
			t.Errorf("CONNECT %q: %q, want %q", tc.target, got, tc.line)
		}
		if got := res.Header.Get("X-Should-Retry"); got != "false" {
			t.Errorf("CONNECT %q: X-Should-Retry: %q", tc.target, got)
		}
	}
	if _, _, ok := p.log.find(func(e Entry) bool { return e.Event == EventTunnelOpen }); ok {
		t.Error("a tunnel was opened")
	}
	e := p.log.wait(t, "refusal", func(e Entry) bool { return e.Target == "refused.example:443" })
	if !e.Denied() || e.Scanner != "allowlist" || e.Reason != "domain not in allowlist: refused.example" || e.Method != http.MethodConnect {
		t.Errorf("logged %+v", e)
	}
}

// Line breaks in a target must not be parsed as a header or a second request.
func TestConnectSplitLine(t *testing.T) {
	p := startProxy(t, Config{Entries: Entries{Allow: []string{"example.com"}}})
	res, _, _ := p.raw(t, http.MethodConnect, "CONNECT refused.example:443\r\nHost: example.com:443 HTTP/1.1\r\n\r\n")
	if res.StatusCode != http.StatusBadRequest {
		t.Errorf("%s, want 400", res.Status)
	}
}

// The socket's control hook refuses an address even if no earlier check did.
func TestDialControl(t *testing.T) {
	d := newDialer(Policy{}, testDNS, time.Second)
	l := listen(t)
	_, err := dialOne(t.Context(), d.netDialer("example.com"), netip.MustParseAddrPort(l.Addr().String()), 1)
	if !errors.Is(err, ssrf.ErrProhibitedIP) {
		t.Errorf("dial loopback: %v, want it prohibited", err)
	}
	for _, s := range []string{
		"0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.31.0.1", "192.168.0.1", "192.0.2.1",
		"198.18.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "168.63.129.16", "::", "::1", "::ffff:8.8.8.8",
		"::8.8.8.8", "64:ff9b::808:808", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002::1", "fc00::1", "fe80::1",
		"fec0::1", "ff02::1", "5f00::1", "3fff::1", "fd00:ec2::254",
	} {
		if d.guard.SafeAddr(netip.MustParseAddr(s)) == nil {
			t.Errorf("%s may be dialed", s)
		}
	}
	for _, s := range []string{"8.8.8.8", "198.51.101.10", "2606:4700::1111"} {
		if err := d.guard.SafeAddr(netip.MustParseAddr(s)); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
}

// A private destination is reachable if it is listed; its neighbors are not.
func TestPrivateDestinations(t *testing.T) {
	p, err := Entries{AllowPrivate: []string{"10.1.0.0/16", "::ffff:10.9.9.9", "fd00:1::/32", "*.corp.example"}}.Policy()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		host, addr string
		ok         bool
	}{
		{"a.example", "10.1.2.3", true},
		{"a.example", "10.2.2.3", false},
		{"a.example", "10.9.9.9", true},
		{"a.example", "::ffff:10.1.2.3", true},
		{"a.example", "fd00:1::5", true},
		{"a.example", "fd00:2::5", false},
		{"a.corp.example", "10.2.2.3", true},
		{"corp.example", "192.168.1.1", true},
		{"corp.example", "100.64.0.1", true},
		{"corp.example", "fd00:2::5", true},
		{"corp.example", "127.0.0.1", false},
		{"corp.example", "::1", false},
		{"corp.example", "169.254.169.254", false},
		{"corp.example", "fe80::1", false},
		{"xcorp.example", "10.2.2.3", false},
		{"10.1.0.1", "", true},
		{"10.2.0.1", "", false},
	} {
		d := newDialer(p, fakeDNS{tc.host + ".": {tc.addr}}, time.Second)
		if _, err := d.resolve(t.Context(), tc.host); (err == nil) != tc.ok {
			t.Errorf("%s at %q: %v, want ok: %v", tc.host, tc.addr, err, tc.ok)
		}
	}
}

func TestTunnel(t *testing.T) {
	port := serveTCP(t, echo)
	p := startProxy(t, Config{Entries: Entries{SSH: []string{
		fmt.Sprintf("*.example.com:%d", port), fmt.Sprintf("127.0.0.1:%d", port), fmt.Sprintf("bücher.test:%d", port),
	}}})
	for _, host := range []string{"git.example.com", "GIT.Example.COM.", "example.com", "127.0.0.1", "[::ffff:127.0.0.1]", "xn--bcher-kva.test"} {
		p.connect(t, fmt.Sprintf("%s:%d", host, port)).roundTrip(t, "hello")
	}
	s := p.connect(t, fmt.Sprintf("git.example.com:%d", port))
	s.roundTrip(t, strings.Repeat("x", 1000))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	e := p.log.wait(t, "end of the tunnel", func(e Entry) bool { return e.Event == EventTunnelClose && e.Bytes == 2000 })
	if want := fmt.Sprintf("git.example.com:%d", port); e.Target != want || e.Reason != "" {
		t.Errorf("logged %+v, want %s and no reason", e, want)
	}
}

// Data that a client sends together with its CONNECT belongs to the tunnel.
func TestTunnelEarlyBytes(t *testing.T) {
	port := serveTCP(t, echo)
	p := startProxy(t, Config{Entries: Entries{SSH: []string{fmt.Sprintf("example.com:%d", port)}}})
	res, _, s := p.raw(t, http.MethodConnect, fmt.Sprintf("CONNECT example.com:%d HTTP/1.1\r\nHost: x\r\n\r\nearly", port))
	if res.StatusCode != http.StatusOK {
		t.Fatal(res.Status)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(s, got); err != nil || string(got) != "early" {
		t.Fatalf("%q, %v", got, err)
	}
	s.roundTrip(t, "later")
}

// Each side can close its direction and still read from the other.
func TestTunnelHalfClose(t *testing.T) {
	clientFirst := serveTCP(t, func(c *net.TCPConn) {
		data, _ := io.ReadAll(c)
		_, _ = fmt.Fprintf(c, "got %d", len(data))
	})
	serverFirst := serveTCP(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "banner")
		_ = c.CloseWrite()
		data, _ := io.ReadAll(c)
		afterClose <- string(data)
	})
	p := startProxy(t, Config{Entries: Entries{SSH: []string{
		fmt.Sprintf("a.example.com:%d", clientFirst), fmt.Sprintf("a.example.com:%d", serverFirst),
	}}})

	s := p.connect(t, fmt.Sprintf("a.example.com:%d", clientFirst))
	if _, err := io.WriteString(s, "12345"); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(s); err != nil || string(got) != "got 5" {
		t.Errorf("after the client's CloseWrite: %q, %v", got, err)
	}

	s = p.connect(t, fmt.Sprintf("a.example.com:%d", serverFirst))
	if got, err := io.ReadAll(s); err != nil || string(got) != "banner" {
		t.Errorf("before the client's first byte: %q, %v", got, err)
	}
	if _, err := io.WriteString(s, "still read"); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-afterClose:
		if got != "still read" {
			t.Errorf("after its CloseWrite the server read %q", got)
		}
	case <-time.After(waitTimeout):
		t.Error("after its CloseWrite the server read nothing")
	}
}

var afterClose = make(chan string, 1)

// A body much larger than every buffer arrives complete in both directions concurrently.
func TestTunnelBigBody(t *testing.T) {
	const size = 64 << 20
	port := serveTCP(t, echo)
	p := startProxy(t, Config{Entries: Entries{SSH: []string{fmt.Sprintf("example.com:%d", port)}}})
	s := p.connect(t, fmt.Sprintf("example.com:%d", port))
	sent, got := sha256.New(), sha256.New()
	src := io.LimitReader(rand.NewChaCha8([32]byte{1}), size)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := io.Copy(s, io.TeeReader(src, sent)); err != nil {
			t.Error(err)
		}
		_ = s.CloseWrite()
	})
	n, err := io.Copy(got, s)
	wg.Wait()
	if err != nil || n != size || string(got.Sum(nil)) != string(sent.Sum(nil)) {
		t.Errorf("%d bytes of %d came back, identical: %v, %v", n, size, string(got.Sum(nil)) == string(sent.Sum(nil)), err)
	}
	e := p.log.waitEvent(t, EventTunnelClose)
	if e.Bytes != 2*size {
		t.Errorf("%d bytes logged, want %d", e.Bytes, 2*size)
	}
}

func TestManyTunnels(t *testing.T) {
	const tunnels = 200
	port := serveTCP(t, echo)
	p := startProxy(t, Config{Entries: Entries{SSH: []string{fmt.Sprintf("example.com:%d", port)}}})
	streams := make([]*stream, tunnels)
	for i := range streams {
		streams[i] = p.connect(t, fmt.Sprintf("example.com:%d", port))
	}
	var wg sync.WaitGroup
	for i, s := range streams {
		wg.Go(func() {
			for round := range 5 {
				s.roundTrip(t, fmt.Sprintf("tunnel %d round %d", i, round))
			}
		})
	}
	wg.Wait()
	if n := p.open.Load(); n != tunnels {
		t.Errorf("%d tunnels are open, want %d", n, tunnels)
	}
}

func TestConnectionLimit(t *testing.T) {
	port := serveTCP(t, echo)
	p := startProxy(t, Config{MaxConnections: 3, Entries: Entries{SSH: []string{fmt.Sprintf("example.com:%d", port)}}})
	target := fmt.Sprintf("example.com:%d", port)
	var open []*stream
	for range 3 {
		open = append(open, p.connect(t, target))
	}
	res, body, _ := p.raw(t, http.MethodConnect, "CONNECT "+target+" HTTP/1.1\r\nHost: x\r\n\r\n")
	if res.StatusCode != http.StatusTooManyRequests || !res.Close || res.Header.Get("X-Should-Retry") != "false" {
		t.Errorf("over the limit: %s, close %v: %s", res.Status, res.Close, body)
	}
	res, _, _ = p.raw(t, http.MethodGet, "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	if res.StatusCode != http.StatusOK {
		t.Errorf("health over the limit: %s", res.Status)
	}
	for _, s := range open {
		s.roundTrip(t, "still open")
	}
	// A connection that is closed makes room for another.
	if err := open[0].Close(); err != nil {
		t.Fatal(err)
	}
	p.log.waitEvent(t, EventTunnelClose)
	for limit := time.Now().Add(waitTimeout); p.conns.Load() >= 3; {
		if time.Now().After(limit) {
			t.Fatalf("%d connections are counted after one was closed", p.conns.Load())
		}
		time.Sleep(time.Millisecond) // the count follows the log line
	}
	p.connect(t, target).roundTrip(t, "again")
}

// The idle timeout in tests, and the pauses of active peers. They differ by a
// large factor, so that a slow machine does not change the result.
const (
	idle  = time.Second
	pause = idle / 20
)

func TestIdleTunnelEnds(t *testing.T) {
	port := serveTCP(t, echo)
	p := startProxy(t, Config{IdleTimeout: Duration(idle), Entries: Entries{SSH: []string{fmt.Sprintf("example.com:%d", port)}}})
	s := p.connect(t, fmt.Sprintf("example.com:%d", port))
	// A tunnel that is used outlives the idle timeout.
	start := time.Now()
	for time.Since(start) < 3*idle/2 {
		s.roundTrip(t, "busy")
		time.Sleep(pause)
	}
	start = time.Now()
	if _, err := io.ReadAll(s); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d < idle/2 {
		t.Errorf("tunnel ended %s after its last byte, the idle timeout is %s", d, idle)
	}
	if e := p.log.waitEvent(t, EventTunnelClose); e.Reason != errTunnelIdle.Error() {
		t.Errorf("logged %+v", e)
	}
}

// An active direction keeps the silent other one open.
func TestOneWayTunnelIsNotIdle(t *testing.T) {
	const bytes = 30 // longer than the idle timeout
	port := serveTCP(t, func(c *net.TCPConn) {
		for range bytes {
			_, _ = io.WriteString(c, "x")
			time.Sleep(pause)
		}
	})
	p := startProxy(t, Config{IdleTimeout: Duration(idle), Entries: Entries{SSH: []string{fmt.Sprintf("example.com:%d", port)}}})
	got, err := io.ReadAll(p.connect(t, fmt.Sprintf("example.com:%d", port)))
	if err != nil || len(got) != bytes {
		t.Errorf("%d bytes, %v; want %d", len(got), err, bytes)
	}
}

// A client that closes before it has read everything, as many TLS clients do, is
// not an error.
func TestClientClosesFirst(t *testing.T) {
	port := serveTCP(t, func(c *net.TCPConn) {
		_, _ = io.Copy(io.Discard, c)
		_, _ = io.WriteString(c, "farewell")
	})
	p := startProxy(t, Config{Entries: Entries{SSH: []string{fmt.Sprintf("example.com:%d", port)}}})
	s := p.connect(t, fmt.Sprintf("example.com:%d", port))
	if _, err := io.WriteString(s, "x"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if e := p.log.waitEvent(t, EventTunnelClose); e.Reason != "" {
		t.Errorf("logged %+v", e)
	}
}

func TestOldTunnelEnds(t *testing.T) {
	port := serveTCP(t, echo)
	p := startProxy(t, Config{TunnelTimeout: Duration(100 * time.Millisecond), Entries: Entries{SSH: []string{fmt.Sprintf("example.com:%d", port)}}})
	s := p.connect(t, fmt.Sprintf("example.com:%d", port))
	s.roundTrip(t, "x")
	if _, err := io.ReadAll(s); err != nil {
		t.Fatal(err)
	}
	if e := p.log.waitEvent(t, EventTunnelClose); e.Reason != errTunnelAge.Error() {
		t.Errorf("logged %+v", e)
	}
}

// A receiver that does not read blocks the sender, but not indefinitely.
func TestStalledTunnelEnds(t *testing.T) {
	release := make(chan struct{})
	port := serveTCP(t, func(*net.TCPConn) { <-release })
	p := startProxy(t, Config{IdleTimeout: Duration(100 * time.Millisecond), Entries: Entries{SSH: []string{fmt.Sprintf("example.com:%d", port)}}})
	t.Cleanup(func() { close(release) })
	s := p.connect(t, fmt.Sprintf("example.com:%d", port))
	if n, err := io.Copy(s, rand.NewChaCha8([32]byte{})); err == nil {
		t.Errorf("%d bytes were sent to a server that does not read", n)
	}
	if e := p.log.waitEvent(t, EventTunnelClose); e.Reason == "" {
		t.Errorf("logged %+v, want a reason", e)
	}
}
