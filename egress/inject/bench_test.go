package inject

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"testing"
	"time"
)

// BenchmarkAgainstReverseProxy compares an injector with a bare TLS reverse proxy of the
// same libraries, before the same upstream: requests of 1 kB on one connection, and
// requests with a connection each.
func BenchmarkAgainstReverseProxy(b *testing.B) {
	body := make([]byte, 1000)
	for i := range body {
		body[i] = 'a' + byte(i%26)
	}
	for _, http2 := range []bool{false, true} {
		w := newWorld(b, options{http2: http2, handler: func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }})
		bare := w.reverseProxy(http2)
		for _, keepAlive := range []bool{true, false} {
			for name, addr := range map[string]string{"inject": w.listen, "bare": bare} {
				b.Run(fmt.Sprintf("http2=%v/keepalive=%v/%s", http2, keepAlive, name), func(b *testing.B) {
					c := w.client(http2)
					tr := c.Transport.(*http.Transport)
					tr.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
						var d net.Dialer
						return d.DialContext(ctx, network, addr)
					}
					for b.Loop() {
						r := w.request(http.MethodGet, "/", nil)
						r.Header.Set("X-Api-Key", w.placeholder)
						w.do(c, r)
						if !keepAlive {
							tr.CloseIdleConnections()
						}
					}
				})
			}
		}
	}
}

// reverseProxy starts a bare reverse proxy with the bottle's certificate. It keeps no
// connections to the upstream that the injector would not keep.
func (w *world) reverseProxy(http2 bool) string {
	w.t.Helper()
	cert, err := w.ca.leaf(apiHost)
	if err != nil {
		w.t.Fatal(err)
	}
	proto := map[bool]string{false: protoHTTP1, true: protoHTTP2}[http2]
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{*cert}, NextProtos: []string{proto}, MinVersion: tls.VersionTLS12})
	if err != nil {
		w.t.Fatal(err)
	}
	up := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return w.dialUpstream(ctx, network, w.target)
		},
		TLSClientConfig: &tls.Config{ServerName: apiHost, RootCAs: w.in.config.Roots, MinVersion: tls.VersionTLS12}, Protocols: protocols(proto), DisableCompression: true,
	}
	server := &http.Server{
		ReadHeaderTimeout: time.Minute, Protocols: protocols(proto), ErrorLog: log.New(io.Discard, "", 0),
		Handler: &httputil.ReverseProxy{Transport: up, FlushInterval: -1, Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = "https", w.target, p.In.Host
			p.Out.Header.Set("X-Api-Key", realValue)
		}},
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateClosed {
				up.CloseIdleConnections()
			}
		},
	}
	w.served.Go(func() { _ = server.Serve(l) }) // ends with Close
	w.t.Cleanup(func() {
		_ = server.Close()
		up.CloseIdleConnections()
	})
	return l.Addr().String()
}
