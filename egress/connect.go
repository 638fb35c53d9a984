package egress

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"
)

// connect serves CONNECT host:port.
func (s *Server) connect(w http.ResponseWriter, r *http.Request) {
	s.tunnels.Add(1)
	defer s.tunnels.Done()
	e := s.current.Load()
	// Use the target as it was sent: URL parsing may have changed it.
	raw, port, err := splitTarget(r.RequestURI, 0)
	if err != nil {
		s.refuse(w, r, &refusalError{status: http.StatusBadRequest, scanner: "parser", reason: err.Error()})
		return
	}
	host, verdict, ref := s.admit(e, r, raw, port)
	if ref != nil {
		s.refuse(w, r, ref)
		return
	}
	upstream, err := e.dialer.dial(r.Context(), host, port)
	if err != nil {
		s.refuse(w, r, asRefusal(err))
		return
	}
	defer func() { _ = upstream.Close() }() // the tunnel closes it first on success
	client, early, err := hijack(w)
	if err != nil {
		s.log.log(line{Event: EventError, Target: joinHostPort(host, port), Reason: err.Error()})
		return
	}
	t := &tunnel{
		server: s, target: joinHostPort(host, port), host: host, rule: verdict.Rule,
		allowNonTLS: verdict.SSH || e.learn, learn: e.learn && !verdict.SSH,
		client: client, upstream: upstream, early: early, start: time.Now(),
	}
	s.run(r.Context(), t)
}

// hijack takes over a client's connection from the HTTP server and returns it
// with the bytes that the server had read after the request.
func hijack(w http.ResponseWriter) (*net.TCPConn, []byte, error) {
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, nil, fmt.Errorf("hijack client connection: %w", err)
	}
	if w, ok := conn.(*watchedConn); ok {
		conn = w.TCPConn
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		_ = conn.Close()
		return nil, nil, fmt.Errorf("hijack client connection: unexpected type %T", conn)
	}
	early := make([]byte, buf.Reader.Buffered())
	_, err = buf.Read(early) // one Read returns everything that is buffered
	if err != nil && len(early) > 0 {
		_ = tcp.Close()
		return nil, nil, fmt.Errorf("read early client data: %w", err)
	}
	return tcp, early, nil
}

// run serves a tunnel, counts it, and bounds its lifetime.
func (s *Server) run(ctx context.Context, t *tunnel) {
	s.open.Add(1)
	s.conns.Add(1)
	defer func() {
		s.open.Add(-1)
		s.conns.Add(-1)
	}()
	ctx, cancel := context.WithTimeoutCause(ctx, s.limits.tunnel, errTunnelAge)
	defer cancel()
	t.serve(ctx)
}
