package inject

import (
	"bufio"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/secret"
)

const (
	apiHost   = "api.example.test"
	otherHost = "other.example.test"
	realValue = "sk-ant-api03-RealRealRealRealRealRealRealRealRealRealRealRealReal-_0123456789AA"
)

// world is an injector between a client and two upstreams.
type world struct {
	t           testing.TB
	in          *Injector
	placeholder string
	ca          *CA
	listen      string // every connection is served as a tunnel to target
	target      string
	upstreams   map[string]string // host:port to address

	mu     sync.Mutex
	events []Event
	served sync.WaitGroup
}

// authority signs certificates of upstreams.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func (a *authority) sign(t testing.TB, host string, notAfter time.Time) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{host}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: notAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// server starts a real TLS server.
func (a *authority) server(t testing.TB, cert tls.Certificate, http2 bool, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = http2
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes that must fail
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{protoHTTP1}}
	if http2 {
		s.TLS.NextProtos = []string{protoHTTP2, protoHTTP1}
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

type options struct {
	http2   bool
	handler http.HandlerFunc // of apiHost
	other   http.HandlerFunc
	secret  func(*Secret)
	more    []Secret
	// cert replaces the certificate of apiHost.
	cert func(*authority) tls.Certificate
	// target is what tunnels are to; empty: apiHost.
	target string
}

func newWorld(t testing.TB, o options) *world {
	t.Helper()
	w := &world{t: t, placeholder: Placeholder(realValue), target: cmp.Or(o.target, apiHost+":443")}
	auth := newAuthority(t)
	cert := auth.sign(t, apiHost, time.Now().Add(time.Hour))
	if o.cert != nil {
		cert = o.cert(auth)
	}
	if o.other == nil {
		o.other = http.NotFound
	}
	w.upstreams = map[string]string{
		apiHost + ":443":   auth.server(t, cert, o.http2, o.handler),
		otherHost + ":443": auth.server(t, auth.sign(t, otherHost, time.Now().Add(time.Hour)), o.http2, o.other),
	}
	s := Secret{Name: "KEY", Value: secret.New(realValue), Placeholder: w.placeholder, Hosts: []string{apiHost}}
	if o.secret != nil {
		o.secret(&s)
	}
	secrets := append([]Secret{s}, o.more...)
	hosts, err := Hosts(secrets, nil)
	if err != nil {
		t.Fatal(err)
	}
	if w.ca, err = NewCA(hosts); err != nil {
		t.Fatal(err)
	}
	w.in, err = New(Config{Secrets: secrets, CA: w.ca, Dial: w.dialUpstream, Roots: auth.pool(), Report: w.report})
	if err != nil {
		t.Fatal(err)
	}
	w.serve()
	return w
}

func (w *world) dialUpstream(ctx context.Context, network, target string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, w.upstreams[target])
}

func (w *world) report(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
}

func (w *world) serve() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	w.listen = l.Addr().String()
	ctx, cancel := context.WithCancel(w.t.Context())
	w.served.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			w.served.Go(func() { _ = w.in.ServeConn(ctx, conn, w.target) }) // errors are seen by clients
		}
	})
	w.t.Cleanup(func() {
		_ = l.Close()
		cancel()
		w.served.Wait()
	})
}

// clientTLS is the configuration of a client that trusts the bottle's CA.
func (w *world) clientTLS(protos ...string) *tls.Config {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(w.ca.CertPEM())
	return &tls.Config{RootCAs: pool, ServerName: apiHost, NextProtos: protos, MinVersion: tls.VersionTLS12}
}

// client returns an HTTP client in the bottle.
func (w *world) client(http2 bool) *http.Client {
	proto := protoHTTP1
	if http2 {
		proto = protoHTTP2
	}
	tr := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, w.listen)
		},
		TLSClientConfig: w.clientTLS(), Protocols: protocols(proto), DisableCompression: true,
		ExpectContinueTimeout: time.Minute,
	}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (w *world) request(method, path string, body io.Reader) *http.Request {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, "https://"+apiHost+path, body)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// answer is a response that was read.
type answer struct {
	StatusCode, ProtoMajor int
	Header, Trailer        http.Header
}

// do sends a request and reads the response.
func (w *world) do(c *http.Client, r *http.Request) (answer, string) {
	w.t.Helper()
	res, err := c.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer{res.StatusCode, res.ProtoMajor, res.Header, res.Trailer}, string(body)
}

// raw opens a TLS connection for requests that no client library sends.
func (w *world) raw(protos ...string) (*tls.Conn, *bufio.Reader) {
	w.t.Helper()
	conn, err := tls.Dial("tcp", w.listen, w.clientTLS(protos...))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	return conn, bufio.NewReader(conn)
}

// await returns the first event of a kind. Requests are reported after their response.
func (w *world) await(kind Kind) Event {
	w.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		w.mu.Lock()
		for _, e := range w.events {
			if e.Kind == kind {
				w.mu.Unlock()
				return e
			}
		}
		w.mu.Unlock()
	}
	w.t.Fatalf("no event %s in %v", kind, w.events)
	return Event{}
}

// both runs a test over HTTP/1.1 and HTTP/2.
func both(t *testing.T, test func(t *testing.T, http2 bool)) {
	t.Run("http1", func(t *testing.T) { test(t, false) })
	t.Run("http2", func(t *testing.T) { test(t, true) })
}

func check(t *testing.T, what string, got, want any) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// checkClean fails if the client has seen the real value.
func (w *world) checkClean(res answer, body string) {
	w.t.Helper()
	var b strings.Builder
	_ = res.Header.Write(&b)
	_ = res.Trailer.Write(&b)
	if text := b.String() + body; strings.Contains(text, realValue) {
		w.t.Errorf("the client has the real value: %s", text)
	}
}

// tcpPair returns both ends of a connection.
func tcpPair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return client, server
}

func tlsClient(t *testing.T, conn net.Conn, w *world) *tls.Conn {
	t.Helper()
	c := tls.Client(conn, w.clientTLS(protoHTTP1))
	if err := c.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// upstreamTLS is a client of the upstream itself.
func (w *world) upstreamTLS(conn net.Conn) *tls.Conn {
	w.t.Helper()
	up := tls.Client(conn, &tls.Config{RootCAs: w.in.config.Roots, ServerName: apiHost, NextProtos: []string{protoHTTP1}, MinVersion: tls.VersionTLS12})
	w.t.Cleanup(func() { _ = up.Close() })
	return up
}
