package egress

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// newTransport returns the client side of plain requests. It uses no proxy,
// follows no redirects, and dials only through d.
func newTransport(d *dialer, l limits) *http.Transport {
	return &http.Transport{
		Proxy: nil,
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			host, port, err := splitTarget(address, 0)
			if err != nil {
				return nil, err
			}
			return d.dial(ctx, host, port)
		},
		DisableCompression:     true, // pass responses unchanged
		MaxIdleConns:           64,
		MaxIdleConnsPerHost:    8,
		IdleConnTimeout:        30 * time.Second,
		ResponseHeaderTimeout:  l.idle,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 256 << 10,
	}
}

// forward serves a request in absolute form: GET http://host/path. The client's
// Host header is ignored, as RFC 9112 section 3.2.2 requires: the host that was
// checked is the one that is dialed and sent in the Host header.
func (s *Server) forward(w http.ResponseWriter, r *http.Request) {
	e := s.current.Load()
	host, port, rule, ref := s.checkForward(e, r)
	if ref != nil {
		s.refuse(w, r, ref)
		return
	}
	// Without full duplex, the HTTP server reads the complete request before it
	// sends the first byte of the response. HTTP/1, the only version served,
	// supports it.
	client := http.NewResponseController(w)
	_ = client.EnableFullDuplex()
	ctx, cancel := context.WithTimeout(r.Context(), s.limits.tunnel)
	defer cancel()
	f := &forwarding{server: s, host: host, port: port, rule: rule, start: time.Now(), client: client}
	f.idle = time.AfterFunc(s.limits.idle, cancel)
	defer f.idle.Stop()
	defer f.logEnd(r)
	// Without the Upgrade header, ReverseProxy also strips the rest of the
	// upgrade. Only WebSocket is refused (checkForward): clients that offer
	// other upgrades continue without one.
	r.Header.Del("Upgrade")
	f.count(r)
	proxy := httputil.ReverseProxy{
		Rewrite:        f.rewrite,
		Transport:      e.transport,
		FlushInterval:  -1, // flush every write, for streams
		BufferPool:     &copyBuffers,
		ErrorLog:       log.New(io.Discard, "", 0),
		ModifyResponse: f.response,
		ErrorHandler:   func(w http.ResponseWriter, _ *http.Request, err error) { f.failed(w, r, err) },
	}
	proxy.ServeHTTP(w, r.WithContext(ctx))
}

// checkForward checks the request's URL against the policy.
func (s *Server) checkForward(e *enforcer, r *http.Request) (host string, port int, rule string, ref *refusalError) {
	bad := func(status int, scanner, format string, args ...any) *refusalError {
		return &refusalError{status: status, scanner: scanner, reason: fmt.Sprintf(format, args...)}
	}
	u := r.URL
	switch {
	case u.Scheme != "http":
		return "", 0, "", bad(http.StatusForbidden, "scheme", "%s URLs are not forwarded: use CONNECT for https", shorten(u.Scheme))
	case u.User != nil:
		return "", 0, "", bad(http.StatusBadRequest, "parser", "URL contains user information: send an Authorization header instead")
	case u.Opaque != "" || u.Host == "":
		return "", 0, "", bad(http.StatusBadRequest, "parser", "URL has no host")
	case strings.EqualFold(r.Header.Get("Upgrade"), "websocket"):
		return "", 0, "", bad(http.StatusForbidden, "websocket", "WebSocket over plain HTTP is not forwarded to %s: use wss", shorten(u.Host))
	}
	raw, port, err := splitTarget(u.Host, portHTTP)
	if err != nil {
		return "", 0, "", bad(http.StatusBadRequest, "parser", "%v", err)
	}
	host, v, ref := s.admit(e, r, raw, port)
	return host, port, v.Rule, ref
}

// forwarding is one plain request in progress.
type forwarding struct {
	server *Server
	host   string
	port   int
	rule   string
	start  time.Time
	status int          // 0 until the upstream responds
	bytes  atomic.Int64 // of both bodies together
	client *http.ResponseController
	idle   *time.Timer // cancels the request
}

// rewrite prepares the outgoing request. ReverseProxy has removed hop-by-hop
// headers already.
func (f *forwarding) rewrite(pr *httputil.ProxyRequest) {
	pr.Out.URL.Host = joinHostPort(f.host, f.port)
	pr.Out.Host = strings.TrimSuffix(pr.Out.URL.Host, ":80")
	// Restore query parameters that ReverseProxy removed because it cannot
	// parse them: the server may be able to.
	pr.Out.URL.RawQuery = pr.In.URL.RawQuery
	for _, h := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if v, ok := pr.In.Header[h]; ok {
			pr.Out.Header[h] = v
		}
	}
}

func (f *forwarding) response(res *http.Response) error {
	f.status = res.StatusCode
	res.Body = &countingBody{ReadCloser: res.Body, moved: f.moved}
	return nil
}

func (f *forwarding) count(r *http.Request) {
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &countingBody{ReadCloser: r.Body, moved: f.moved}
	}
}

func (f *forwarding) failed(w http.ResponseWriter, r *http.Request, err error) {
	f.status = 0
	s := f.server
	ref := asRefusal(err)
	if ref.status == http.StatusBadGateway && !strings.Contains(ref.reason, f.host) {
		ref.reason = fmt.Sprintf("no response from %s: %s", joinHostPort(f.host, f.port), ref.reason)
	}
	s.refuse(w, r, ref)
}

// logEnd also runs when ReverseProxy panics to abort a truncated response.
func (f *forwarding) logEnd(r *http.Request) {
	if f.status == 0 {
		return
	}
	f.server.log.log(line{
		Event: EventForward, Method: r.Method, URL: r.RequestURI, Status: f.status, Rule: f.rule,
		TotalBytes: ptr(f.bytes.Load()), DurationMS: ptr(time.Since(f.start).Milliseconds()),
	})
}

// moved records n bytes of a body: the request is not idle, and the client has
// the idle timeout to receive them.
func (f *forwarding) moved(n int) {
	f.bytes.Add(int64(n))
	idle := f.server.limits.idle
	f.idle.Reset(idle)
	// An error means that the connection is closed already.
	_ = f.client.SetWriteDeadline(time.Now().Add(idle))
}

// countingBody reports the bytes read from a body.
type countingBody struct {
	io.ReadCloser
	moved func(n int)
}

func (b *countingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.moved(n)
	}
	return n, err
}

// bufferPool is a pool of copy buffers, an httputil.BufferPool.
type bufferPool struct{ pool sync.Pool }

const copyBufferSize = 32 << 10

var copyBuffers bufferPool

func (b *bufferPool) Get() []byte {
	if buf, ok := b.pool.Get().(*[]byte); ok {
		return *buf
	}
	return make([]byte, copyBufferSize)
}

func (b *bufferPool) Put(buf []byte) { b.pool.Put(&buf) }
