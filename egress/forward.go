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

// newTransport makes the client side of plain requests. It follows no proxy
// and no redirect, and dials nothing that d does not.
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
		DisableCompression:     true, // the answer passes as it is
		MaxIdleConns:           64,
		MaxIdleConnsPerHost:    8,
		IdleConnTimeout:        30 * time.Second,
		ResponseHeaderTimeout:  l.idle,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 256 << 10,
	}
}

// forward answers a request in absolute form: GET http://host/path. The Host
// header that the client sent is not looked at, as RFC 9112 section 3.2.2
// wants: the host that was checked is the one that is dialled and the one that
// the server is told.
func (s *Server) forward(w http.ResponseWriter, r *http.Request) {
	e := s.current.Load()
	host, port, rule, ref := s.checkForward(e, r)
	if ref != nil {
		s.refuse(w, r, ref)
		return
	}
	// Without it the server would read the request to its end before it passes
	// the first byte of the answer on. It is supported for HTTP/1, which is all
	// that is served.
	client := http.NewResponseController(w)
	_ = client.EnableFullDuplex()
	ctx, cancel := context.WithTimeout(r.Context(), s.limits.tunnel)
	defer cancel()
	f := &forwarding{server: s, host: host, port: port, rule: rule, start: time.Now(), client: client}
	f.idle = time.AfterFunc(s.limits.idle, cancel)
	defer f.idle.Stop()
	defer f.logEnd(r)
	// With it gone ReverseProxy strips what else belongs to an upgrade. Only
	// websockets are refused (checkForward): other clients go on without.
	r.Header.Del("Upgrade")
	f.count(r)
	proxy := httputil.ReverseProxy{
		Rewrite:        f.rewrite,
		Transport:      e.transport,
		FlushInterval:  -1, // streams are passed on as they come
		BufferPool:     &copyBuffers,
		ErrorLog:       log.New(io.Discard, "", 0),
		ModifyResponse: f.response,
		ErrorHandler:   func(w http.ResponseWriter, _ *http.Request, err error) { f.failed(w, r, err) },
	}
	proxy.ServeHTTP(w, r.WithContext(ctx))
}

// checkForward holds the request's URL against the policy.
func (s *Server) checkForward(e *enforcer, r *http.Request) (host string, port int, rule string, ref *refusalError) {
	bad := func(status int, scanner, format string, args ...any) *refusalError {
		return &refusalError{status: status, scanner: scanner, reason: fmt.Sprintf(format, args...)}
	}
	u := r.URL
	switch {
	case u.Scheme != "http":
		return "", 0, "", bad(http.StatusForbidden, "scheme", "a %s URL is not forwarded: use CONNECT for https", shorten(u.Scheme))
	case u.User != nil:
		return "", 0, "", bad(http.StatusBadRequest, "parser", "the URL has a user part: send an Authorization header")
	case u.Opaque != "" || u.Host == "":
		return "", 0, "", bad(http.StatusBadRequest, "parser", "the URL has no host")
	case strings.EqualFold(r.Header.Get("Upgrade"), "websocket"):
		return "", 0, "", bad(http.StatusForbidden, "websocket", "websockets over plain HTTP are not forwarded to %s: use wss", shorten(u.Host))
	}
	raw, port, err := splitTarget(u.Host, portHTTP)
	if err != nil {
		return "", 0, "", bad(http.StatusBadRequest, "parser", "%v", err)
	}
	host, v, ref := s.admit(e, r, raw, port)
	return host, port, v.Rule, ref
}

// forwarding is one plain request on its way.
type forwarding struct {
	server *Server
	host   string
	port   int
	rule   string
	start  time.Time
	status int          // 0: it was not forwarded
	bytes  atomic.Int64 // of both bodies
	client *http.ResponseController
	idle   *time.Timer // ends the request
}

// rewrite makes the request for the server; hop-by-hop headers are gone by now.
func (f *forwarding) rewrite(pr *httputil.ProxyRequest) {
	pr.Out.URL.Host = joinHostPort(f.host, f.port)
	pr.Out.Host = strings.TrimSuffix(pr.Out.URL.Host, ":80")
	// ReverseProxy drops parameters that it cannot parse; the server may.
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
		ref.reason = fmt.Sprintf("no answer from %s: %s", joinHostPort(f.host, f.port), ref.reason)
	}
	s.refuse(w, r, ref)
}

// logEnd runs also when ReverseProxy panics to cut an answer that broke off.
func (f *forwarding) logEnd(r *http.Request) {
	if f.status == 0 {
		return
	}
	f.server.log.log(line{
		Event: EventForward, Method: r.Method, URL: r.RequestURI, Status: f.status, Rule: f.rule,
		TotalBytes: ptr(f.bytes.Load()), DurationMS: ptr(time.Since(f.start).Milliseconds()),
	})
}

// moved notes that n bytes of a body came: the request is not idle, and the
// client has the idle time to take them.
func (f *forwarding) moved(n int) {
	f.bytes.Add(int64(n))
	idle := f.server.limits.idle
	f.idle.Reset(idle)
	// The HTTP server's own connection has deadlines.
	_ = f.client.SetWriteDeadline(time.Now().Add(idle))
}

// countingBody tells of what passes through a body.
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

// bufferPool lends copy buffers.
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
