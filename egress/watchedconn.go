package egress

import (
	"bytes"
	"net"
	"strings"
	"sync/atomic"
)

// watchedListener hands out connections that tell of the answers which the HTTP
// server gives by itself, to requests that it cannot read: they are refusals, too.
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

// connKey marks the context of a request with its *watchedConn.
type connKey struct{}

// watchedConn is a client's connection until it becomes a tunnel.
type watchedConn struct {
	*net.TCPConn
	server *Server
	// ours: what is written answers a request that Server.handle has got.
	ours atomic.Bool
}

// Write logs what it writes, if that is the HTTP server's own.
func (c *watchedConn) Write(p []byte) (int, error) {
	if !c.ours.Load() {
		status, _, _ := bytes.Cut(p, []byte("\r\n"))
		c.server.log.log(line{
			Event: EventBlocked, Scanner: "parser",
			Reason: "no request that can be read: " + strings.TrimPrefix(string(status), "HTTP/1.1 "),
		})
	}
	return c.TCPConn.Write(p)
}
