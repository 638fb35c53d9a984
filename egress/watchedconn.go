package egress

import (
	"bytes"
	"net"
	"strings"
	"sync/atomic"
)

// watchedListener accepts connections that log the responses which the HTTP
// server sends itself to malformed requests: these are refusals, too.
type watchedListener struct {
	net.Listener
	server *Server
}

// Accept implements net.Listener.
func (l watchedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if tcp, ok := c.(*net.TCPConn); ok {
		return &watchedConn{TCPConn: tcp, server: l.server}, nil
	}
	return c, err
}

// connKey is the context key of a request's *watchedConn.
type connKey struct{}

// watchedConn is a client connection until it becomes a tunnel.
type watchedConn struct {
	*net.TCPConn
	server *Server
	// handled is set while a response to a request that reached Server.handle
	// is written.
	handled atomic.Bool
}

// Write logs the response if it is the HTTP server's own.
func (c *watchedConn) Write(p []byte) (int, error) {
	if !c.handled.Load() {
		status, _, _ := bytes.Cut(p, []byte("\r\n"))
		c.server.log.log(line{
			Event: EventBlocked, Scanner: "parser",
			Reason: "malformed request: " + strings.TrimPrefix(string(status), "HTTP/1.1 "),
		})
	}
	return c.TCPConn.Write(p)
}
