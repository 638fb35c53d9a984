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
		s.refuse(w, r, s.dialRefusal(r, host, err))
		return
	}
	target := tunnelTarget{host: host, port: port}
	terminate, err := s.terminates(target.String(), verdict)
	if err != nil {
		_ = upstream.Close() // nothing was sent to it
		s.refuse(w, r, &refusalError{status: http.StatusForbidden, scanner: ScannerRules, rule: verdict.Rule, reason: err.Error()})
		return
	}
	ctx := serverContext(r)
	client, early, err := hijack(w)
	if err != nil {
		_ = upstream.Close() // nothing was sent to it
		s.log.log(line{Event: EventError, Target: target.String(), Reason: err.Error()})
		return
	}
	t := &tunnel{
		server: s, target: target, rule: verdict.Rule, ssh: verdict.SSH, learn: e.learn && !verdict.SSH,
		client: client, upstream: upstream, early: early, start: time.Now(),
	}
	if terminate {
		s.tunnels.Go(func() { s.terminate(ctx, t) })
		return
	}
	// Not in this goroutine: it would keep the request, and the HTTP server's
	// buffers, as long as the tunnel is open.
	s.tunnels.Go(func() { s.run(ctx, t) })
}

// serverContext returns the context of [Server.Serve] for a request. That of the
// request ends with its handler.
func serverContext(r *http.Request) context.Context {
	return r.Context().Value(connKey{}).(*watchedConn).ctx
}

// hijack takes over a client's connection from the HTTP server and returns it
// with the bytes that the server had read after the request.
func hijack(w http.ResponseWriter) (*net.TCPConn, []byte, error) {
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, nil, fmt.Errorf("hijack client connection: %w", err)
	}
	watched, ok := conn.(*watchedConn)
	if !ok {
		_ = conn.Close()
		return nil, nil, fmt.Errorf("hijack client connection: unexpected type %T", conn)
	}
	watched.head.release()
	early := make([]byte, buf.Reader.Buffered())
	_, err = buf.Read(early) // one Read returns everything that is buffered
	if err != nil && len(early) > 0 {
		_ = watched.Close()
		return nil, nil, fmt.Errorf("read early client data: %w", err)
	}
	return watched.TCPConn, early, nil
}

// run serves a tunnel, counts it, and bounds its lifetime. A tunnel for plain
// HTTP is passed on to the HTTP server.
func (s *Server) run(ctx context.Context, t *tunnel) {
	if plain := s.serveTunnel(ctx, t); plain != nil {
		plain.tunnel = &t.target
		s.inner.deliver(plain)
	}
}

func (s *Server) serveTunnel(ctx context.Context, t *tunnel) *watchedConn {
	ctx, end := s.beginTunnel(ctx)
	defer end()
	return t.serve(ctx)
}

// beginTunnel counts a tunnel until end is called, and bounds its lifetime.
func (s *Server) beginTunnel(ctx context.Context) (bounded context.Context, end func()) {
	s.open.Add(1)
	s.conns.Add(1)
	ctx, cancel := context.WithTimeoutCause(ctx, s.limits.tunnel, errTunnelAge)
	return ctx, func() {
		cancel()
		s.open.Add(-1)
		s.conns.Add(-1)
	}
}
