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
	if ref := r.Context().Value(connKey{}).(*watchedConn).takeRefusal(); ref != nil {
		s.refuse(w, r, ref)
		return
	}
	t, terminate, ref := s.establish(r.Context(), s.current.Load(), r)
	if ref != nil {
		s.refuse(w, r, ref)
		return
	}
	ctx := serverContext(r)
	var err error
	if t.client, t.early, err = hijack(w); err != nil {
		_ = t.upstream.Close() // nothing was sent to it
		s.log.log(line{Event: EventError, Target: t.target.String(), Reason: err.Error()})
		return
	}
	t.start = time.Now()
	if terminate {
		s.tunnels.Go(func() { s.terminate(ctx, t) })
		return
	}
	// Not in this goroutine: it would keep the request, and the HTTP server's
	// buffers, as long as the tunnel is open.
	s.tunnels.Go(func() { s.run(ctx, t) })
}

// establish checks a CONNECT and connects to its target. It returns the tunnel, which has no
// client yet, and whether its TLS has to be terminated. Of the request it uses the method,
// the target and the client's address.
func (s *Server) establish(ctx context.Context, e *enforcer, r *http.Request) (t *tunnel, terminate bool, ref *refusalError) {
	// Use the target as it was sent: URL parsing may have changed it.
	raw, port, err := splitTarget(r.RequestURI, 0)
	if err != nil {
		return nil, false, &refusalError{status: http.StatusBadRequest, scanner: "parser", reason: err.Error()}
	}
	host, verdict, ref := s.admit(e, r, raw, port)
	if ref != nil {
		return nil, false, ref
	}
	upstream, err := e.dialer.dial(ctx, host, port)
	if err != nil {
		return nil, false, s.dialRefusal(r, host, err)
	}
	target := tunnelTarget{host: host, port: port}
	if terminate, err = s.terminates(target.String(), verdict); err != nil {
		_ = upstream.Close() // nothing was sent to it
		return nil, false, &refusalError{status: http.StatusForbidden, scanner: ScannerRules, rule: verdict.Rule, reason: err.Error()}
	}
	return &tunnel{
		server: s, target: target, rule: verdict.Rule, ssh: verdict.SSH, learn: e.learn && !verdict.SSH, upstream: upstream,
	}, terminate, nil
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
