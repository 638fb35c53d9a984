package inject

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	protoHTTP2 = "h2"
	protoHTTP1 = "http/1.1"

	// handshakeTime bounds the handshakes with client and upstream together.
	handshakeTime = 30 * time.Second
	// continueTime is how long a body is held back for the upstream's 100 (Continue),
	// as curl does.
	continueTime = time.Second
	maxHeader    = 64 << 10
	// headerTime and idleTime bound how long a client's connection waits for the rest of
	// a header, and for the next request.
	headerTime = 30 * time.Second
	idleTime   = 5 * time.Minute
	// window is how much of the bodies of an HTTP/2 connection is buffered.
	window = 512 << 10
	// maxStreams is how many requests a connection serves concurrently: the smallest
	// number that RFC 9113 (section 6.5.2) recommends, because each has buffers here.
	maxStreams = 100
)

// ServeConn terminates TLS for a client that has been connected to target, host:port,
// and returns when the connection has ended. It closes conn, also when ctx is done.
func (in *Injector) ServeConn(ctx context.Context, conn net.Conn, target string) error {
	host, ok := in.targets[target]
	if !ok {
		_ = conn.Close()
		return fmt.Errorf("no secret for %s", target)
	}
	_, port, err := net.SplitHostPort(target)
	if err != nil {
		_ = conn.Close()
		return err
	}
	s := &session{in: in, host: host, port: port, target: target}
	defer in.conns.Add(-1)
	if in.conns.Add(1) > maxConns {
		_ = conn.Close()
		err := fmt.Errorf("more than %d connections to hosts with secrets are open", maxConns)
		s.report(Event{Kind: KindRefused, Where: "connection", Err: err})
		return err
	}
	raw := &closeConn{Conn: conn, closed: make(chan struct{})}
	defer func() { _ = raw.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	return s.serve(ctx, raw)
}

// session is one client connection.
type session struct {
	in                 *Injector
	host, port, target string
	proto              string // negotiated; empty without ALPN

	mu    sync.Mutex
	first *tls.Conn // the connection that chose proto, until it is used
}

func (s *session) serve(ctx context.Context, raw *closeConn) error {
	handshake, cancel := context.WithTimeout(ctx, handshakeTime)
	client := tls.Server(raw, &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: s.clientConfig})
	err := client.HandshakeContext(handshake)
	cancel()
	defer s.closeFirst()
	if err != nil {
		return fmt.Errorf("handshake with client: %w", err)
	}
	ctx, cancel = context.WithCancel(ctx) // ends requests with the connection
	defer cancel()
	transport := s.transport()
	defer transport.CloseIdleConnections()
	var conn net.Conn = client // net/http recognises HTTP/2 by this type
	if s.proto != protoHTTP2 {
		conn = &halfConn{Conn: client, raw: raw}
	}
	server := &http.Server{
		Handler:   &handler{session: s, transport: transport},
		Protocols: protocols(s.proto),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerConnection: window, MaxReceiveBufferPerStream: window,
		},
		ReadHeaderTimeout: headerTime,
		IdleTimeout:       idleTime,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          noLog,
		MaxHeaderBytes:    maxHeader,
	}
	err = server.Serve(&oneConn{conn: conn, closed: raw.closed})
	_ = server.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func protocols(proto string) *http.Protocols {
	var p http.Protocols
	p.SetHTTP2(proto == protoHTTP2)
	p.SetHTTP1(proto != protoHTTP2)
	return &p
}

// clientConfig connects to the upstream and returns the configuration for a client: a
// certificate and the protocol that the upstream has chosen.
func (s *session) clientConfig(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if normalHost(hello.ServerName) != s.host {
		err := fmt.Errorf("wrong server name %q: the tunnel's host is %s", hello.ServerName, s.host)
		s.report(Event{Kind: KindHost, Where: "server name", Err: err})
		return nil, err
	}
	cert, err := s.in.config.CA.leaf(s.host)
	if err != nil {
		return nil, err
	}
	s.proto = s.chooseProto(hello.Context(), hello.SupportedProtos)
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*cert}, SessionTicketsDisabled: true}
	if s.proto != "" {
		c.NextProtos = []string{s.proto}
	}
	return c, nil
}

// chooseProto asks the upstream. If it cannot be reached, the client gets the error in
// response to its request, because a failed handshake would not explain it.
func (s *session) chooseProto(ctx context.Context, offered []string) string {
	var known []string
	for _, p := range offered {
		if p == protoHTTP1 || p == protoHTTP2 {
			known = append(known, p)
		}
	}
	up, err := s.connect(ctx, known)
	switch {
	case err == nil:
		s.first = up
		return up.ConnectionState().NegotiatedProtocol
	case slices.Contains(known, protoHTTP1), len(known) == 0:
		return ""
	}
	return known[0]
}

// connect opens a verified connection to the upstream.
func (s *session) connect(ctx context.Context, protos []string) (*tls.Conn, error) {
	conn, err := s.in.config.Dial(ctx, "tcp", s.target)
	if err != nil {
		return nil, err
	}
	up := tls.Client(conn, &tls.Config{
		ServerName: s.host, RootCAs: s.in.config.Roots, NextProtos: protos, MinVersion: tls.VersionTLS12,
	})
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	if err := up.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return up, nil
}

// dial is connect for requests. The first has a connection already.
func (s *session) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	s.mu.Lock()
	up := s.first
	s.first = nil
	s.mu.Unlock()
	if up != nil {
		return up, nil
	}
	protos := []string{protoHTTP1}
	if s.proto == protoHTTP2 {
		protos = []string{protoHTTP2}
	}
	up, err := s.connect(ctx, protos)
	if err != nil {
		return nil, err // not a nil *tls.Conn
	}
	return up, nil
}

func (s *session) closeFirst() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.first != nil {
		_ = s.first.Close()
		s.first = nil
	}
}

func (s *session) transport() *http.Transport {
	return &http.Transport{
		DialTLSContext:         s.dial,
		Protocols:              protocols(s.proto),
		DisableCompression:     true, // a client's Accept-Encoding stays as it is
		ExpectContinueTimeout:  continueTime,
		MaxResponseHeaderBytes: maxHeader,
		HTTP2:                  &http.HTTP2Config{MaxReceiveBufferPerConnection: window, MaxReceiveBufferPerStream: window},
		IdleConnTimeout:        90 * time.Second,
		WriteBufferSize:        32 << 10,
		ReadBufferSize:         32 << 10,
	}
}

func (s *session) report(e Event) {
	e.Target = s.target
	s.in.config.Report(e)
}

// oneConn is a listener with one connection.
type oneConn struct {
	conn   net.Conn
	once   sync.Once
	closed chan struct{} // with the connection
}

// Accept returns the connection, and then waits for its end.
func (l *oneConn) Accept() (conn net.Conn, err error) {
	l.once.Do(func() { conn = l.conn })
	if conn != nil {
		return conn, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }

// closeConn reports that it was closed, and whether the peer has ended its data.
type closeConn struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
	ended  atomic.Bool
}

func (c *closeConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err == io.EOF { //nolint:errorlint // net.Conn returns io.EOF itself
		c.ended.Store(true)
	}
	return n, err
}

func (c *closeConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { close(c.closed) })
	return err
}

// halfConn is an HTTP/1.1 client whose end of data does not cancel the request that is
// being served, as net/http would: it may still want the response.
type halfConn struct {
	*tls.Conn
	raw *closeConn
}

// Read returns io.EOF when the client has left. After close_notify (RFC 8446, section
// 6.1) alone, the client may still read.
func (c *halfConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	// While it serves a request, net/http notices a client that leaves by reading one
	// byte. Its other reads are buffered, and need the end of the data.
	if n > 0 || err != io.EOF || len(p) != 1 || c.raw.ended.Load() { //nolint:errorlint // tls.Conn returns io.EOF itself
		return n, err
	}
	if _, err := c.raw.Read(p); err != nil {
		return 0, err // also the deadline by which net/http ends its read
	}
	return 0, io.EOF // data after close_notify is ignored
}
