package egress

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

// watchedListener accepts clients for [Server.opening], and returns those to the HTTP
// server that are over the limit. Its connections log the responses which the HTTP server
// sends itself to malformed requests: these are refusals, too.
type watchedListener struct {
	net.Listener
	ctx    context.Context // of [Server.Serve]
	server *Server
}

// Accept implements net.Listener.
func (l watchedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		tcp, ok := c.(*net.TCPConn)
		if !ok {
			_ = c.Close()
			return nil, fmt.Errorf("unexpected connection type %T", c)
		}
		w := l.server.watch(tcp)
		if w.nth = l.server.conns.Add(1); w.nth > int64(l.server.limits.connections) {
			return w, nil
		}
		l.server.tunnels.Go(func() { l.server.opening(l.ctx, w) })
	}
}

// connKey is the context key of a request's *watchedConn.
type connKey struct{}

// watchedConn is a connection that the HTTP server reads requests from: a
// client's until it becomes a tunnel, or a tunnel that carries plain HTTP.
type watchedConn struct {
	*net.TCPConn
	server *Server
	ctx    context.Context // of the server, set when the connection is served
	// tunnel is the target of the CONNECT that plain HTTP comes in; nil if the
	// client speaks to the proxy itself.
	tunnel *tunnelTarget
	early  []byte // read before the connection was served
	// nth is how many connections were open with this one; 0: it is not counted yet.
	nth int64
	// refused is the refusal of the CONNECT in early, if that was handled already.
	refused *refusalError
	// headBy limits the time to read the first request's head, if it is not complete yet.
	headBy time.Time
	head   *headMeter
	// handled is set while a response to a request that reached Server.handle
	// is written.
	handled atomic.Bool
	// linger: the client may still be sending when the connection is closed.
	linger atomic.Bool
}

func (s *Server) watch(c *net.TCPConn) *watchedConn {
	w := &watchedConn{TCPConn: c, server: s, head: newHeadMeter("request", s.memory)}
	w.head.start()
	return w
}

// awaitRequest prepares for the next request.
func (c *watchedConn) awaitRequest() {
	c.handled.Store(false)
	c.head.start()
}

// takeRefusal returns the refusal of the request that is being served, if that was handled
// before the connection was.
func (c *watchedConn) takeRefusal() *refusalError {
	ref := c.refused
	c.refused = nil
	return ref
}

// SetReadDeadline implements net.Conn: the time for a head does not begin again with the
// HTTP server.
func (c *watchedConn) SetReadDeadline(t time.Time) error {
	switch {
	case t.IsZero():
		c.headBy = t // the head is complete
	case !c.headBy.IsZero() && t.After(c.headBy):
		t = c.headBy
	}
	return c.TCPConn.SetReadDeadline(t)
}

// Read counts what it reads of a request's head.
func (c *watchedConn) Read(p []byte) (n int, err error) {
	if err := c.head.failed(); err != nil {
		return 0, err
	}
	if len(c.early) > 0 {
		n = copy(p, c.early)
		if c.early = c.early[n:]; len(c.early) == 0 {
			c.early = nil
		}
	} else {
		n, err = c.TCPConn.Read(p)
	}
	c.head.count(p[:n])
	return n, err
}

// Write logs the response if it is the HTTP server's own. To a request whose head
// was not read to its end, that is one without the reason.
func (c *watchedConn) Write(p []byte) (int, error) {
	if c.handled.Load() {
		return c.TCPConn.Write(p)
	}
	status, _, _ := bytes.Cut(p, []byte("\r\n"))
	ln := line{
		Event: EventBlocked, Scanner: "parser",
		Reason: "malformed request: " + strings.TrimPrefix(string(status), "HTTP/1.1 "),
	}
	if c.tunnel != nil {
		ln.Target = c.tunnel.String()
	}
	var ref *refusalError
	if !errors.As(c.head.failed(), &ref) {
		c.server.log.log(ln)
		return c.TCPConn.Write(p)
	}
	ln.Scanner, ln.Reason, ln.Status = ref.scanner, ref.reason, ref.status
	c.server.log.log(ln)
	c.linger.Store(true)
	_, err := fmt.Fprintf(c.TCPConn, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nX-Should-Retry: false\r\nConnection: close\r\n\r\nblocked: %s\n",
		ref.status, http.StatusText(ref.status), ref.reason)
	return len(p), err
}

// Bounds of reading on before a connection is closed.
const (
	lingerTime  = 500 * time.Millisecond
	lingerBytes = 1 << 20
)

// Close closes the connection. Data that was not read would reset it, and the
// client would lose the response: so some of it is read.
func (c *watchedConn) Close() error {
	c.head.release()
	if c.linger.Load() {
		// Errors do not matter: the connection is closed in any case.
		_ = c.CloseWrite()
		_ = c.SetReadDeadline(time.Now().Add(lingerTime))
		_, _ = io.CopyN(io.Discard, struct{ io.Reader }{c.TCPConn}, lingerBytes)
	}
	return c.TCPConn.Close()
}
