package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// newTransport returns the client side of plain requests. It uses no proxy,
// follows no redirects, and dials only through d.
func newTransport(d *dialer, l limits, m *memory) *http.Transport {
	return &http.Transport{
		Proxy: nil,
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			host, port, err := splitTarget(address, 0)
			if err != nil {
				return nil, err
			}
			conn, err := d.dial(ctx, host, port)
			if err != nil {
				return nil, err
			}
			return &upstreamConn{TCPConn: conn, head: newHeadMeter("response", m)}, nil
		},
		DisableCompression:     true, // pass responses unchanged
		MaxIdleConns:           64,
		MaxIdleConnsPerHost:    8,
		IdleConnTimeout:        30 * time.Second,
		ResponseHeaderTimeout:  l.idle,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxHeadBytes,
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
	if s.plain.Add(1) > s.memory.forwards {
		s.plain.Add(-1)
		s.refuse(w, r, &refusalError{
			status: http.StatusTooManyRequests, scanner: "ratelimit", rule: rule,
			reason: fmt.Sprintf("more than %d plain HTTP requests are in progress", s.memory.forwards),
		})
		return
	}
	defer s.plain.Add(-1)
	// Without full duplex, the HTTP server reads the complete request before it
	// sends the first byte of the response. HTTP/1, the only version served,
	// supports it.
	client := http.NewResponseController(w)
	_ = client.EnableFullDuplex()
	ctx, cancelAge := context.WithTimeoutCause(r.Context(), s.limits.tunnel, errRequestAge)
	defer cancelAge()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	f := &forwarding{server: s, request: r, host: host, port: port, rule: rule, start: time.Now(), client: client}
	f.idle = time.AfterFunc(s.limits.idle, func() { cancel(errTunnelIdle) })
	defer f.idle.Stop()
	defer f.end(ctx)
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: f.gotConn})
	// Without the Upgrade header, ReverseProxy also strips the rest of the
	// upgrade. Only WebSocket is refused (checkForward): clients that offer
	// other upgrades continue without one.
	r.Header.Del("Upgrade")
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &countingBody{ReadCloser: r.Body, f: f, from: fromClient}
	}
	proxy := httputil.ReverseProxy{
		Rewrite:        f.rewrite,
		Transport:      e.transport,
		FlushInterval:  -1, // flush every write, for streams
		BufferPool:     &copyBuffers,
		ErrorLog:       log.New(io.Discard, "", 0),
		ModifyResponse: f.response,
		ErrorHandler:   f.failed,
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
	if ref == nil && v.Narrowed {
		ref = bad(http.StatusForbidden, ScannerRules, "%s has rules for its requests, which are for https only", host)
	}
	return host, port, v.Rule, ref
}

// errRequestAge is the reason for ending a request that is too old.
var errRequestAge = errors.New("request reached its maximum age")

// forwarding is one plain request in progress.
type forwarding struct {
	server   *Server
	request  *http.Request // as the client sent it
	host     string
	port     int
	rule     string
	start    time.Time
	opened   bool // it is logged: bytes may have been sent
	status   int  // of the response; 0 before there is one
	complete bool // the response was read to its end
	bytes    atomic.Int64
	reason   atomic.Pointer[string] // why it ended early
	client   *http.ResponseController
	idle     *time.Timer // cancels the request
	// upstream is the connection that the request was sent on, until its
	// response has begun.
	upstream *upstreamConn
	head     charge // for the response's head
}

// gotConn logs the request, before its first byte is sent: an agent that exits, or
// a proxy that is killed, must not leave a request without a line.
func (f *forwarding) gotConn(info httptrace.GotConnInfo) {
	if !f.opened {
		f.opened = true
		f.server.log.log(line{Event: EventForwardOpen, Method: f.request.Method, URL: f.request.RequestURI, Rule: f.rule})
	}
	f.upstream = info.Conn.(*upstreamConn)
	f.upstream.head.start()
}

// upstreamConn is a connection to a server for plain requests.
type upstreamConn struct {
	*net.TCPConn
	head *headMeter
}

// Read counts what it reads of a response's head.
func (c *upstreamConn) Read(p []byte) (int, error) {
	if err := c.head.failed(); err != nil {
		return 0, err
	}
	n, err := c.TCPConn.Read(p)
	c.head.count(p[:n])
	return n, err
}

// Close closes the connection.
func (c *upstreamConn) Close() error {
	c.head.release()
	return c.TCPConn.Close()
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
	err := f.upstream.head.settle(res.Status, res.Header)
	f.head = f.upstream.head.take() // another request may use the connection before this one ends
	if err != nil {
		return err
	}
	f.status = res.StatusCode
	res.Body = &countingBody{ReadCloser: res.Body, f: f, from: fromServer}
	return nil
}

// failed answers a request that got no response.
func (f *forwarding) failed(w http.ResponseWriter, _ *http.Request, err error) {
	s := f.server
	ref := s.dialRefusal(f.request, f.host, err)
	if ref.status == http.StatusBadGateway && !strings.Contains(ref.reason, f.host) {
		ref.reason = fmt.Sprintf("no response from %s: %s", joinHostPort(f.host, f.port), ref.reason)
	}
	if !f.opened || ref.scanner != "dial" {
		s.refuse(w, f.request, ref)
		return
	}
	// It has a line already. The one of its end has the reason; if the client has
	// left, that is the reason.
	if f.request.Context().Err() == nil {
		f.status = ref.status
		f.note(ref.reason)
	}
	respond(w, ref.status, ref.reason+"\n")
}

// note records why the request ended early, unless that is known.
func (f *forwarding) note(reason string) { f.reason.CompareAndSwap(nil, &reason) }

// end also runs when ReverseProxy panics to abort a truncated response.
func (f *forwarding) end(ctx context.Context) {
	f.head.release()
	if !f.opened {
		return
	}
	var reason string
	switch p, cause := f.reason.Load(), context.Cause(ctx); {
	case f.complete: // if the client has left since, it has the response
	case errors.Is(cause, errTunnelIdle), errors.Is(cause, errRequestAge):
		reason = cause.Error()
	case serverContext(f.request).Err() != nil:
		reason = errShutdown.Error()
	case p != nil:
		reason = *p
	case cause != nil:
		reason = "client closed the connection"
	}
	f.server.log.log(line{
		Event: EventForwardClose, Method: f.request.Method, URL: f.request.RequestURI, Status: f.status, Rule: f.rule, Reason: reason,
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

const (
	fromClient = "client"
	fromServer = "server"
)

// countingBody reports the bytes read from a body, and the error that ends it.
type countingBody struct {
	io.ReadCloser
	f    *forwarding
	from string
}

func (b *countingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.f.moved(n)
	}
	b.f.ended(b.from, err)
	return n, err
}

func (f *forwarding) ended(from string, err error) {
	switch {
	case err == nil, errors.Is(err, http.ErrBodyReadAfterClose): // the server did not need all of it
	case !errors.Is(err, io.EOF):
		f.note(fmt.Sprintf("read from %s: %v", from, err))
	case from == fromServer:
		f.complete = true
	}
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
