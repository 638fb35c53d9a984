package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// dnsServer is a DNS server on loopback that counts the questions that it was asked.
type dnsServer struct {
	addr string

	mu    sync.Mutex
	hosts map[string]dnsHost
	asked map[dnsmessage.Question]int
}

type dnsHost struct {
	v4  string
	ttl uint32 // seconds
}

func startDNS(tb testing.TB, hosts map[string]dnsHost) *dnsServer {
	tb.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	s := &dnsServer{addr: conn.LocalAddr().String(), hosts: hosts, asked: map[dnsmessage.Question]int{}}
	done := make(chan struct{})
	tb.Cleanup(func() {
		if err := conn.Close(); err != nil {
			tb.Error(err)
		}
		<-done
	})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				var answer []byte
				if answer, err = s.answer(buf[:n]); err == nil {
					_, err = conn.WriteTo(answer, from)
				}
			}
			if err != nil && !errors.Is(err, net.ErrClosed) {
				tb.Error(err)
			}
		}
	}()
	return s
}

func (s *dnsServer) answer(query []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		return nil, err
	}
	q := m.Questions[0]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[q]++
	m.Response, m.RCode, m.Additionals = true, dnsmessage.RCodeNameError, nil
	soa := dnsmessage.Resource{
		Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("."), Class: q.Class, TTL: 600},
		Body:   &dnsmessage.SOAResource{NS: q.Name, MBox: q.Name, MinTTL: 600},
	}
	host, ok := s.hosts[q.Name.String()]
	if ok {
		m.RCode = dnsmessage.RCodeSuccess
	}
	if ok && q.Type == dnsmessage.TypeA {
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: host.ttl},
			Body:   &dnsmessage.AResource{A: netip.MustParseAddr(host.v4).As4()},
		}}
	} else {
		m.Authorities = []dnsmessage.Resource{soa}
	}
	return m.Pack()
}

// set changes a host.
func (s *dnsServer) set(name string, h dnsHost) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hosts[name] = h
}

// questions returns how often the address of a name was asked for.
func (s *dnsServer) questions(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}]
}

// dial connects to the server, whatever resolv.conf says.
func (s *dnsServer) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "udp", s.addr)
}

// TestLookupsAreKept: an answer is used for its TTL and no longer, and a name that does
// not exist is looked up again. The control is the resolver without a cache.
func TestLookupsAreKept(t *testing.T) {
	const kept, changed, zero, missing = "kept.test.", "changed.test.", "zero.test.", "missing.test."
	s := startDNS(t, map[string]dnsHost{kept: {"192.0.2.1", 600}, zero: {"192.0.2.3", 0}})
	lookup := func(r Resolver, name string) string {
		t.Helper()
		addrs, err := r.LookupNetIP(t.Context(), "ip", name)
		if err != nil || len(addrs) != 1 {
			t.Fatalf("%s: %v, %v", name, addrs, err)
		}
		return addrs[0].String()
	}
	plain, r := &net.Resolver{PreferGo: true, Dial: s.dial}, newResolver(s.dial)
	for range 2 {
		lookup(plain, kept)
	}
	if n := s.questions(kept); n != 2 {
		t.Errorf("control: %d questions without a cache", n)
	}
	for range 3 {
		lookup(r, kept)
		lookup(r, zero)
	}
	if n := s.questions(kept) - 2; n != 1 {
		t.Errorf("%d questions for a name that is kept", n)
	}
	if n := s.questions(zero); n != 3 {
		t.Errorf("%d questions for a name with TTL 0", n)
	}
	for range 2 {
		if _, err := r.LookupNetIP(t.Context(), "ip", missing); err == nil {
			t.Error("a name that does not exist has an address")
		}
	}
	s.set(missing, dnsHost{"192.0.2.4", 600})
	if got := lookup(r, missing); got != "192.0.2.4" {
		t.Errorf("the new name has %s", got)
	}
	now := time.Now()
	r.now = func() time.Time { return now }
	for _, c := range []struct {
		ttl  uint32
		want time.Duration
	}{{60, time.Minute}, {86400, maxKeptTTL}} {
		s.set(changed, dnsHost{"192.0.2.5", c.ttl})
		now = now.Add(time.Hour)
		lookup(r, changed)
		s.set(changed, dnsHost{"192.0.2.6", c.ttl})
		now = now.Add(c.want - 1)
		if got := lookup(r, changed); got != "192.0.2.5" {
			t.Errorf("TTL %d: %s before the end", c.ttl, got)
		}
		now = now.Add(1)
		if got := lookup(r, changed); got != "192.0.2.6" {
			t.Errorf("TTL %d: %s after the end", c.ttl, got)
		}
	}
	for i := range maxKeptNames + 10 {
		name := fmt.Sprintf("h%d.many.test.", i)
		s.set(name, dnsHost{"192.0.2.7", 600})
		lookup(r, name)
	}
	if n := len(r.kept); n != maxKeptNames {
		t.Errorf("%d names are kept", n)
	}
}

// TestKeptAddressesAreChecked: an answer from the cache is checked as one from the server:
// a name that changes to a private address is refused, and a change of the policy counts
// for names that are kept.
func TestKeptAddressesAreChecked(t *testing.T) {
	const host = "rebound.example"
	s := startDNS(t, map[string]dnsHost{host + ".": {"127.0.0.1", 1}})
	port := serveTCP(t, echo)
	target := fmt.Sprintf("%s:%d", host, port)
	p := startProxy(t, Config{Resolver: newResolver(s.dial), Entries: Entries{Allow: []string{target}}})
	status := func() int {
		t.Helper()
		res, _, c := p.raw(t, http.MethodConnect, "CONNECT "+target+" HTTP/1.1\r\nHost: x\r\n\r\n")
		_ = c.Close()
		return res.StatusCode
	}
	if code := status(); code != http.StatusOK {
		t.Fatalf("control: %d", code)
	}
	s.set(host+".", dnsHost{"10.99.0.10", 600})
	for limit := time.Now().Add(waitTimeout); status() != http.StatusForbidden; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("the new address is not refused")
		}
	}
	before := s.questions(host + ".")
	if code, n := status(), s.questions(host+".")-before; code != http.StatusForbidden || n != 0 {
		t.Errorf("from the cache: %d, %d questions", code, n)
	}
}

// BenchmarkConnect opens and closes tunnels one after another: with every answer from the
// DNS server, with answers from the cache, and with an address. Each reports the ratio of
// its time to that of a connection to the server itself.
func BenchmarkConnect(b *testing.B) {
	dns := startDNS(b, map[string]dnsHost{"bench.test.": {"127.0.0.1", 600}})
	port := serveClosing(b)
	var direct float64
	b.Run("direct", func(b *testing.B) {
		for b.Loop() {
			c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				b.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); err != nil {
				b.Fatal(err)
			}
			_ = c.Close()
		}
		direct = float64(b.Elapsed()) / float64(b.N)
	})
	for _, c := range []struct {
		name, host string
		r          Resolver
	}{
		{"uncached", "bench.test", &net.Resolver{PreferGo: true, Dial: dns.dial}},
		{"cached", "bench.test", newResolver(dns.dial)},
		{"address", "127.0.0.1", testDNS},
	} {
		b.Run(c.name, func(b *testing.B) {
			target := fmt.Sprintf("%s:%d", c.host, port)
			s, err := New(testConfig(Config{Resolver: c.r, Entries: Entries{SSH: []string{target}}}), io.Discard)
			if err != nil {
				b.Fatal(err)
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(b.Context())
			var wg sync.WaitGroup
			wg.Go(func() { _ = s.Serve(ctx, l) })
			for b.Loop() {
				c, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					b.Fatal(err)
				}
				if _, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: x\r\n\r\n", target); err != nil {
					b.Fatal(err)
				}
				const ok = "HTTP/1.1 200 Connection established\r\n\r\n"
				if _, err := io.ReadFull(c, make([]byte, len(ok)+1)); err != nil {
					b.Fatal(err)
				}
				_ = c.Close()
			}
			if direct > 0 {
				b.ReportMetric(float64(b.Elapsed())/float64(b.N)/direct, "connect/direct")
			}
			cancel()
			wg.Wait()
		})
	}
}

// serveClosing greets every client with a byte until it leaves.
func serveClosing(b *testing.B) (port int) {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				_, _ = c.Write([]byte("x"))
				_, _ = io.Copy(io.Discard, c)
				_ = c.Close()
			})
		}
	})
	b.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return portOf(l.Addr().String())
}
