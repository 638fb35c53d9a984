package inject

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// handler serves the requests of one client connection.
type handler struct {
	session   *session
	transport http.RoundTripper
}

// ServeHTTP implements [http.Handler].
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s := h.session
	x := &exchange{
		handler: h, w: &responseWriter{ResponseWriter: w}, start: time.Now(),
		insertion: insertion{table: s.in.table.Load(), target: s.target, bodies: s.in.bodies},
		event:     Event{Kind: KindRequest, Method: r.Method, Path: r.URL.Path},
	}
	select {
	case s.in.requests <- struct{}{}:
		defer func() { <-s.in.requests }()
	default:
		x.refuse(&refusal{
			kind: KindRefused, status: http.StatusTooManyRequests, where: "request",
			reason: fmt.Sprintf("more than %d requests to hosts with secrets are in progress", maxRequests),
		})
		return
	}
	// A copy: net/http looks at the body of the original when the handler has returned.
	x.serve(r.WithContext(r.Context()))
}

// exchange is one request and its response.
type exchange struct {
	*handler
	insertion
	w     *responseWriter
	start time.Time
	event Event
	sent  atomic.Int64
	// echoes is set when the request has its secrets.
	echoes *echoes
}

func (x *exchange) serve(r *http.Request) {
	if err := checkHost(r, x.session.host, x.session.port); err != nil {
		x.refuse(&refusal{kind: KindHost, status: http.StatusMisdirectedRequest, where: "Host", reason: err.Error()})
		return
	}
	// The upstream may answer before it has read the request. HTTP/2 always permits that.
	_ = http.NewResponseController(x.w).EnableFullDuplex()
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &countingBody{ReadCloser: r.Body, n: &x.sent}
	}
	dropUpgrade(r.Header)
	if refs := x.session.in.config.Refs; refs != nil {
		x.event.Refs = refs(r)
	}
	if ref := x.check(r); ref != nil {
		x.refuse(ref)
		return
	}
	if ref := x.insert(r); ref != nil {
		x.refuse(ref)
		return
	}
	x.echoes = newEchoes(x.table, x.echo, func(secrets []string, where string) {
		x.session.report(Event{Kind: KindEcho, Method: x.event.Method, Path: x.event.Path, Secrets: secrets, Where: where})
	})
	x.w.echoes = x.echoes
	if x.table.echo != nil { // otherwise there is nothing to find in a response
		limitEncodings(r.Header)
	}
	defer x.end() // also if ReverseProxy aborts the connection
	proxy := &httputil.ReverseProxy{
		Rewrite:        x.rewrite,
		Transport:      x.transport,
		FlushInterval:  -1,
		BufferPool:     buffers{},
		ModifyResponse: x.response,
		ErrorHandler:   x.fail,
		ErrorLog:       noLog,
	}
	proxy.ServeHTTP(x.w, r)
}

// check asks [Config.Check].
func (x *exchange) check(r *http.Request) *refusal {
	check := x.session.in.config.Check
	if check == nil {
		return nil
	}
	d := check(x.session.target, r)
	if d == nil {
		return nil
	}
	ref := &refusal{kind: KindRule, status: d.Status, where: "request", reason: d.Reason, answer: d.Answer}
	ref.hidePath = slices.ContainsFunc(x.table.entries, func(e *entry) bool { return contains(r.URL.Path, e.header) || contains(r.URL.EscapedPath(), e.header) })
	return ref
}

// noLog is for what is reported in another way.
var noLog = log.New(io.Discard, "", 0)

// buffers are what ReverseProxy copies bodies with.
type buffers struct{}

var bufferPool = sync.Pool{New: func() any { return new([32 << 10]byte) }}

func (buffers) Get() []byte  { return bufferPool.Get().(*[32 << 10]byte)[:] }
func (buffers) Put(b []byte) { bufferPool.Put((*[32 << 10]byte)(b)) }

func (x *exchange) end() {
	e := x.event
	e.Secrets, e.Status, e.Sent, e.Received, e.Duration = x.used, x.w.status, x.sent.Load(), x.w.n, time.Since(x.start)
	if e.Kind == KindRequest {
		x.session.report(e)
	}
}

// rewrite undoes what ReverseProxy changes.
func (x *exchange) rewrite(p *httputil.ProxyRequest) {
	p.Out.URL.Scheme, p.Out.URL.Host = "https", x.session.target
	p.Out.Host = p.In.Host
	p.Out.URL.RawQuery = p.In.URL.RawQuery
	p.Out.URL.ForceQuery = p.In.URL.ForceQuery
	keepPath(p.Out)
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if v, ok := p.In.Header[name]; ok {
			p.Out.Header[name] = v
		}
	}
	// Trailers are known after the body: the map is that of the incoming request.
	p.Out.Trailer = p.In.Trailer
}

// keepPath keeps the spelling of a path that net/url would escape in another way.
func keepPath(r *http.Request) {
	path, _, _ := strings.Cut(r.RequestURI, "?")
	if r.URL.EscapedPath() != path && strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "//") {
		r.URL.Opaque = path
	}
}

// dropUpgrade keeps a client from leaving HTTP/1.1 for HTTP/2 or TLS, whose requests
// would not be checked. A server is free to ignore Upgrade (RFC 9110, section 7.8), so
// a client continues without.
func dropUpgrade(h http.Header) {
	for _, p := range strings.Split(strings.Join(h["Upgrade"], ","), ",") {
		name, _, _ := strings.Cut(strings.TrimSpace(p), "/")
		if strings.EqualFold(name, "h2c") || strings.EqualFold(name, "h2") || strings.EqualFold(name, "TLS") || strings.EqualFold(name, "HTTP") {
			h.Del("Upgrade")
			h.Del("Http2-Settings")
			return
		}
	}
}

// response replaces values in a response.
func (x *exchange) response(res *http.Response) error {
	x.w.status = res.StatusCode // of an upgrade, which is not written through x.w
	return x.echoes.response(res)
}

// fail answers a request that could not be sent on.
func (x *exchange) fail(_ http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, context.Canceled) && r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // the client has gone
	}
	x.refuse(&refusal{
		kind: KindUpstream, status: http.StatusBadGateway, where: "upstream", secrets: x.used,
		reason: fmt.Sprintf("cannot use %s: %v", x.session.target, err), cause: err,
	})
}

// refuse answers a request and reports why.
func (x *exchange) refuse(ref *refusal) {
	if ref.hidePath {
		x.event.Path = ""
	}
	x.event.Kind = ref.kind
	e := x.event
	e.Secrets, e.Where, e.Status, e.Err, e.Duration = ref.secrets, ref.where, ref.status, ref, time.Since(x.start)
	x.session.report(e)
	h := x.w.Header()
	h.Set("X-Should-Retry", "false") // Claude Code repeats requests without it
	if ref.answer != nil {
		ref.answer(x.w)
		return
	}
	h.Set("Content-Type", "text/plain; charset=utf-8")
	x.w.WriteHeader(ref.status)
	_, _ = io.WriteString(x.w, "bottle: "+ref.reason+"\n") // the client may have gone
}

// responseWriter counts, and adds no headers that the upstream has not sent.
type responseWriter struct {
	http.ResponseWriter
	status int
	n      int64
	echoes *echoes // for interim responses, which ReverseProxy writes by itself
}

// Unwrap gives [http.ResponseController] the original.
func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *responseWriter) WriteHeader(status int) {
	if status >= 200 || status == http.StatusSwitchingProtocols {
		w.status = status
		for _, name := range []string{"Content-Type", "Date"} {
			if _, ok := w.Header()[name]; !ok {
				w.Header()[name] = nil // net/http adds one otherwise
			}
		}
	}
	if status < 200 && status != http.StatusSwitchingProtocols {
		w.echoes.header(w.Header(), "header")
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *responseWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.n += int64(n)
	return n, err
}

type countingBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (b *countingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	return n, err
}
