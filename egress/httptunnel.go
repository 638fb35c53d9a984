package egress

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
)

// Plain HTTP in a tunnel: some clients (undici, and so fetch in Node; curl -p) send
// CONNECT for http:// URLs, too. Such a tunnel is not relayed. Its connection goes
// back to the HTTP server, with the target of the CONNECT, so that each request on
// it is parsed, checked, logged and forwarded as one in absolute form is.

// tunnelTarget is the host, normalized, and port that a CONNECT named.
type tunnelTarget struct {
	host string
	port int
}

func (t tunnelTarget) String() string { return joinHostPort(t.host, t.port) }

// innerListener passes tunnels on to the HTTP server. It is a net.Listener.
type innerListener struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	close sync.Once
}

func newInnerListener(addr net.Addr) *innerListener {
	return &innerListener{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *innerListener) deliver(c net.Conn) {
	select {
	case l.conns <- c:
	case <-l.done:
		_ = c.Close() // the proxy is shutting down
	}
}

// Accept implements net.Listener.
func (l *innerListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Addr implements net.Listener.
func (l *innerListener) Addr() net.Addr { return l.addr }

// Close implements net.Listener.
func (l *innerListener) Close() error {
	l.close.Do(func() { close(l.done) })
	return nil
}

// forwardInTunnel serves a request in a tunnel to target.
func (s *Server) forwardInTunnel(w http.ResponseWriter, r *http.Request, target tunnelTarget) {
	learn := s.current.Load().learn
	to, ref := target.match(r)
	if ref != nil && ref.scanner == "host" && learn {
		s.logWouldBlock(r.Method, target.String(), ref)
		ref = nil
	}
	if ref != nil {
		// What else the client has sent is not worth reading.
		w.Header().Set("Connection", "close")
		s.refuse(w, r, ref)
		return
	}
	// From here on it is a request in absolute form.
	u := *r.URL
	u.Scheme, u.Host = "http", strings.TrimSuffix(to.String(), fmt.Sprintf(":%d", portHTTP))
	r.RequestURI = "http://" + u.Host + r.RequestURI
	r.URL = &u
	s.forward(w, r)
}

// match returns the host and port that a request in the tunnel is for. They have
// to be those of the CONNECT.
func (t tunnelTarget) match(r *http.Request) (tunnelTarget, *refusalError) {
	if r.Method == http.MethodConnect || r.URL.IsAbs() || !strings.HasPrefix(r.RequestURI, "/") {
		return t, &refusalError{
			status: http.StatusBadRequest, scanner: "parser",
			reason: "plain HTTP in a tunnel to " + t.String() + " requires HTTP/1 requests with a path as target",
		}
	}
	raw, port, err := splitTarget(r.Host, portHTTP)
	if err == nil {
		name, _, nerr := normalHost(raw)
		if got := (tunnelTarget{name, port}); nerr == nil {
			if got == t {
				return t, nil
			}
			return got, t.mismatch(got.String())
		}
	}
	ref := t.mismatch(shorten(maskURL(r.Host)))
	ref.status, ref.scanner = http.StatusBadRequest, "parser"
	return t, ref
}

func (t tunnelTarget) mismatch(host string) *refusalError {
	return &refusalError{
		status: http.StatusForbidden, scanner: "host",
		reason: fmt.Sprintf("HTTP request is for %q, CONNECT named %s", host, t),
	}
}
