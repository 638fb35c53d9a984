package egress

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Most clients send one CONNECT, in one piece, and then use the tunnel. For these the HTTP
// server's generality is most of the time that the proxy takes to answer: it parses into
// maps, and reads on in a second goroutine while a request is handled, which it then has to
// stop. So a connection's first bytes are read here. All else goes to the HTTP server with
// what has been read: other requests, unusual or incomplete ones, and refusals.

// maxOpening is how much is read of a connection before it goes to the HTTP server. Its
// lines cost no more than any connection may buffer (freeCost).
const maxOpening = 1 << 10

// opening serves a client's connection, which is counted, from its first bytes.
func (s *Server) opening(ctx context.Context, c *watchedConn) {
	t, terminate := s.openTunnel(ctx, c)
	if t == nil {
		return
	}
	s.conns.Add(-1) // the tunnel counts it from here on
	if terminate {
		s.terminate(ctx, t)
		return
	}
	s.run(ctx, t)
}

// openTunnel returns the tunnel that a client has opened, and whether its TLS has to be
// terminated. It is nil if the connection was closed or handed to the HTTP server.
func (s *Server) openTunnel(ctx context.Context, c *watchedConn) (t *tunnel, terminate bool) {
	stop := context.AfterFunc(ctx, func() { _ = c.TCPConn.Close() })
	defer stop()
	defer s.logOpeningPanic(c)
	c.headBy = time.Now().Add(s.limits.header)
	buf := make([]byte, maxOpening)
	err := c.TCPConn.SetReadDeadline(c.headBy)
	n := 0
	if err == nil {
		n, err = c.TCPConn.Read(buf)
	}
	if err != nil {
		s.conns.Add(-1)
		_ = c.TCPConn.Close() // nothing was requested
		return nil, false
	}
	target, size, ok := parseConnect(buf[:n])
	if ok {
		c.headBy = time.Time{}
		early := slices.Clone(buf[size:n]) // without the rest of the buffer
		if t, terminate, c.refused = s.tunnelTo(ctx, c, target, early); t != nil {
			return t, terminate
		}
	}
	c.early = buf[:n]
	s.inner.deliver(c)
	return nil, false
}

// tunnelTo opens a tunnel for a client whose CONNECT was read.
func (s *Server) tunnelTo(ctx context.Context, c *watchedConn, target string, early []byte) (*tunnel, bool, *refusalError) {
	watched, unwatch := c.whileOpen(ctx)
	defer unwatch()
	t, terminate, ref := s.establish(watched, s.current.Load(), &http.Request{
		Method: http.MethodConnect, RequestURI: target, RemoteAddr: c.RemoteAddr().String(),
	})
	if ref != nil {
		return nil, false, ref
	}
	t.client, t.early, t.start = c.TCPConn, early, time.Now()
	return t, terminate, nil
}

// logOpeningPanic logs a panic before there is a tunnel, which ends the connection, as the
// HTTP server does with one that handles a request.
func (s *Server) logOpeningPanic(c *watchedConn) {
	if err := recover(); err != nil {
		s.logInternal(http.MethodConnect, "", err)
		s.conns.Add(-1)
		_ = c.TCPConn.Close()
	}
}

// parseConnect returns the target of the CONNECT at the start of p, and the length of its
// head. ok is false if the HTTP server has to read the request: because it is another one,
// is not complete, has anything that few clients send, or is invalid. What is accepted here,
// the HTTP server accepts too, with the same result (see FuzzParseConnect).
func parseConnect(p []byte) (target string, size int, ok bool) {
	const method, version = "CONNECT ", " HTTP/1.1"
	end := bytes.Index(p, []byte("\r\n\r\n"))
	if end < 0 || !bytes.HasPrefix(p, []byte(method)) {
		return "", 0, false
	}
	first, fields, _ := strings.Cut(string(p[len(method):end]), "\r\n")
	target, ok = strings.CutSuffix(first, version)
	if !ok || !isPlainTarget(target) {
		return "", 0, false
	}
	lines, hosts := 2, 0
	for more := fields != ""; more; lines++ {
		var field string
		field, fields, more = strings.Cut(fields, "\r\n")
		name, value, found := strings.Cut(field, ":")
		if !found || !isPlainField(name, value) {
			return "", 0, false
		}
		if strings.EqualFold(name, "Host") {
			if hosts++; hosts > 1 || !isPlainTarget(strings.Trim(value, " ")) {
				return "", 0, false
			}
		}
	}
	size = end + len("\r\n\r\n")
	return target, size, size+lines*lineCost <= freeCost
}

// isPlainTarget accepts a name or an IPv4 address, with or without a port.
func isPlainTarget(s string) bool {
	host, port, _ := strings.Cut(s, ":")
	for i := range len(port) {
		if port[i] < '0' || port[i] > '9' {
			return false
		}
	}
	for i := range len(host) {
		if c := host[i]; c != '.' && !isNameByte(c) && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return host != ""
}

// isPlainField accepts a header line of printable characters, unless it says something about
// a body or asks for an answer of its own.
func isPlainField(name, value string) bool {
	for i := range len(name) {
		if c := name[i]; c != '-' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	for i := range len(value) {
		if value[i] < ' ' || value[i] > '~' {
			return false
		}
	}
	switch strings.ToLower(name) {
	case "", "content-length", "transfer-encoding", "trailer", "expect", "upgrade":
		return false
	}
	return true
}

// watchAfter is how long a tunnel may take to open before its client is watched.
const watchAfter = 20 * time.Millisecond

// whileOpen returns a context that ends when the client closes the connection or stops
// sending. It does not notice that behind data. The connection must not be read until
// unwatch was called.
func (c *watchedConn) whileOpen(ctx context.Context) (_ context.Context, unwatch func()) {
	ctx, cancel := context.WithCancel(ctx)
	_ = c.TCPConn.SetReadDeadline(time.Time{}) // fails if it is closed, as reading does
	done := make(chan struct{})
	timer := time.AfterFunc(watchAfter, func() {
		defer close(done)
		if n, err := peek(c.TCPConn); n == 0 && (err == nil || !isTimeout(err)) {
			cancel()
		}
	})
	return ctx, func() {
		if !timer.Stop() {
			_ = c.TCPConn.SetReadDeadline(time.Unix(1, 0)) // ends the wait
			<-done
			_ = c.TCPConn.SetReadDeadline(time.Time{})
		}
		cancel()
	}
}

func isTimeout(err error) bool {
	t, ok := err.(net.Error) //nolint:errorlint // as net returns it
	return ok && t.Timeout()
}
