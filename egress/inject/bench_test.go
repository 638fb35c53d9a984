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
	"slices"
	"testing"
	"time"
)

// BenchmarkRatio compares an injector with a bare TLS reverse proxy of the same libraries,
// before the same upstream, and reports the ratio of their speeds: more than 1 is faster
// than bare. They take turns, so that the machine's other load slows down both.
//
// It measures requests of 1 kB on one connection, requests with a connection each, and the
// time until the first byte of a stream has arrived.
func BenchmarkRatio(b *testing.B) {
	body := make([]byte, 1000)
	for i := range body {
		body[i] = 'a' + byte(i%26)
	}
	handler := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stream" {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, "data: first\n\n")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done() // the client leaves
			return
		}
		_, _ = w.Write(body)
	}
	for _, http2 := range []bool{false, true} {
		w := newWorld(b, options{http2: http2, handler: handler})
		bare := w.reverseProxy(http2)
		for _, what := range []string{"requests", "connections", "first-byte"} {
			b.Run(fmt.Sprintf("http2=%v/%s", http2, what), func(b *testing.B) {
				ours, theirs := w.benchClient(http2, w.listen), w.benchClient(http2, bare)
				send := w.benchRequest
				switch what {
				case "connections":
					send = func(c *http.Client) time.Duration {
						defer c.CloseIdleConnections()
						return w.benchRequest(c)
					}
				case "first-byte":
					send = w.benchStream
				}
				send(ours) // connects
				send(theirs)
				var our, their []time.Duration
				for b.Loop() {
					their, our = append(their, send(theirs)), append(our, send(ours))
				}
				b.ReportMetric(float64(middle(their))/float64(middle(our)), "ratio")
				b.ReportMetric(float64(middle(our).Nanoseconds()), "ns/inject")
				b.ReportMetric(float64(middle(their).Nanoseconds()), "ns/bare")
			})
		}
	}
}

// middle returns the median, which a pause of the machine does not change.
func middle(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func (w *world) benchClient(http2 bool, addr string) *http.Client {
	c := w.client(http2)
	c.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}
	return c
}

func (w *world) benchRequest(c *http.Client) time.Duration {
	r := w.request(http.MethodGet, "/", nil)
	r.Header.Set("X-Api-Key", w.placeholder)
	began := time.Now()
	w.do(c, r)
	return time.Since(began)
}

func (w *world) benchStream(c *http.Client) time.Duration {
	ctx, cancel := context.WithCancel(w.t.Context())
	defer cancel()
	r := w.request(http.MethodGet, "/stream", nil).WithContext(ctx)
	r.Header.Set("X-Api-Key", w.placeholder)
	began := time.Now()
	res, err := c.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if _, err := io.ReadFull(res.Body, make([]byte, 1)); err != nil {
		w.t.Fatal(err)
	}
	return time.Since(began)
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
