package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Server is the built-in proxy. It is made by [New] and serves until the
// context of [Server.Serve] ends.
type Server struct {
	limits  limits
	rates   *rates
	log     *logger
	current atomic.Pointer[enforcer]
	conns   atomic.Int64 // open clients' connections, tunnels included
	open    atomic.Int64 // open tunnels
	tunnels sync.WaitGroup
	reload  sync.Mutex
}

// enforcer is a policy with what enforces it. It is replaced as a whole, so
// that a request meets one policy from its check to its dial.
type enforcer struct {
	policy    Policy
	learn     bool
	dialer    *dialer
	transport *http.Transport
}

// New makes a proxy with the policy and limits of a configuration; cfg.Listen
// is not used. The log goes to logger as JSON lines, one Write each.
func New(cfg Config, logger io.Writer) (*Server, error) {
	l, err := cfg.limits()
	if err != nil {
		return nil, err
	}
	s := &Server{limits: l, rates: newRates(l.requests), log: newLogger(logger)}
	e, err := s.newEnforcer(cfg)
	if err != nil {
		return nil, err
	}
	s.current.Store(e)
	return s, nil
}

// Reload puts the policy of cfg in force for all requests that begin after it
// returns. Open tunnels and requests go on; limits and timers stay as they
// were. On an error the old policy stays in force.
func (s *Server) Reload(cfg Config) error {
	s.reload.Lock()
	defer s.reload.Unlock()
	e, err := s.newEnforcer(cfg)
	if err != nil {
		return err
	}
	old := s.current.Swap(e)
	old.transport.CloseIdleConnections()
	s.rates.keep(e.policy)
	s.log.log(line{Event: EventReload, Allow: shownHosts(e.policy)})
	return nil
}

func (s *Server) newEnforcer(cfg Config) (*enforcer, error) {
	p, err := cfg.Policy()
	if err != nil {
		return nil, err
	}
	d := newDialer(p, cfg.Resolver, s.limits.dial)
	return &enforcer{policy: p, learn: cfg.Learn, dialer: d, transport: newTransport(d, s.limits)}, nil
}

// Serve answers clients of l until ctx ends, then closes l and every tunnel
// and returns nil, within about a second. It closes l also when it fails.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	srv := s.httpServer(ctx)
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(watchedListener{l, s}) }()
	select {
	case err := <-failed:
		cancel()
		s.stop(srv)
		return fmt.Errorf("serving on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	s.stop(srv)
	<-failed //nolint:errcheck // it tells no more than that it was stopped
	return nil
}

func (s *Server) httpServer(ctx context.Context) *http.Server {
	return &http.Server{
		Handler:                      http.HandlerFunc(s.handle),
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            s.limits.header,
		IdleTimeout:                  2 * time.Minute,
		MaxHeaderBytes:               64 << 10,
		ErrorLog:                     log.New(io.Discard, "", 0), // clients' mistakes
		BaseContext:                  func(net.Listener) context.Context { return ctx },
		ConnContext:                  s.countIn,
		ConnState:                    s.countOut,
	}
}

// stopTimeout bounds what a request still may do once all is being closed.
const stopTimeout = 400 * time.Millisecond

// stop ends srv, whose context has ended: tunnels and requests are on their
// way out already, and what stays longer is cut.
func (s *Server) stop(srv *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		_ = srv.Close() // cutting is all that is left to do
	}
	s.current.Load().transport.CloseIdleConnections()
	done := make(chan struct{})
	go func() {
		s.tunnels.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(stopTimeout):
	}
}

// overLimitKey marks the context of a connection that is one too many.
type overLimitKey struct{}

// spareConnections is how many clients beyond the limit get an answer that
// says so; those beyond them are closed without one.
const spareConnections = 64

func (s *Server) countIn(ctx context.Context, c net.Conn) context.Context {
	if w, ok := c.(*watchedConn); ok {
		ctx = context.WithValue(ctx, connKey{}, w)
	}
	over := s.conns.Add(1) - int64(s.limits.connections)
	if over <= 0 {
		return ctx
	}
	if over > spareConnections {
		s.log.log(line{Event: EventBlocked, Scanner: "ratelimit", Reason: s.tooMany() + ": closed without an answer"})
		_ = c.Close() // it is refused either way
	}
	return context.WithValue(ctx, overLimitKey{}, true)
}

func (s *Server) tooMany() string {
	return fmt.Sprintf("more than %d connections are open", s.limits.connections)
}

// countOut follows countIn. A hijacked connection is counted by its tunnel.
func (s *Server) countOut(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateClosed, http.StateHijacked:
		s.conns.Add(-1)
	case http.StateActive:
		if w, ok := c.(*watchedConn); ok {
			w.ours.Store(false)
		}
	}
}

// handle tells apart what a client can ask of a proxy.
func (s *Server) handle(w http.ResponseWriter, r *http.Request) {
	if w, ok := r.Context().Value(connKey{}).(*watchedConn); ok {
		w.ours.Store(true)
	}
	over, _ := r.Context().Value(overLimitKey{}).(bool)
	switch {
	case isHealth(r):
		s.health(w)
	case over:
		w.Header().Set("Connection", "close")
		s.refuse(w, r, &refusalError{
			status: http.StatusTooManyRequests, scanner: "ratelimit", reason: s.tooMany(),
		})
	case r.Method == http.MethodConnect:
		s.connect(w, r)
	case r.URL.IsAbs():
		s.forward(w, r)
	default:
		s.refuse(w, r, &refusalError{
			status: http.StatusNotFound, scanner: "parser",
			reason: "this is a proxy: set HTTP_PROXY and HTTPS_PROXY to its address",
		})
	}
}

// isHealth wants the path alone: http://host/health is a request to a host.
func isHealth(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && r.RequestURI == "/health"
}

func (s *Server) health(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	// An error here is the client's end of the connection.
	_, _ = fmt.Fprintf(w, `{"status":"healthy","proxy":"builtin","tunnels":%d,"hosts":%d}`+"\n",
		s.open.Load(), len(s.current.Load().policy.Allow))
}

// refuse logs a refusal and answers with it.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, ref *refusalError) {
	ln := line{Event: EventBlocked, Method: r.Method, Scanner: ref.scanner, Reason: ref.reason, Rule: ref.rule, Status: ref.status}
	prefix := "blocked: "
	if r.Method == http.MethodConnect {
		prefix = "CONNECT blocked: "
		ln.Target = r.RequestURI
	} else {
		ln.URL = r.RequestURI
	}
	if ref.scanner == "dial" {
		ln.Event = EventError
		prefix = ""
	}
	s.log.log(ln)
	answer(w, ref.status, prefix+ref.reason+"\n"+hint(ref))
}

// hint is the second line of a refusal: what would allow it.
func hint(ref *refusalError) string {
	switch ref.scanner {
	case "allowlist", "port":
		return "Only who runs this bottle can allow it, on the host: bottle allow.\n"
	}
	return ""
}

// answer is an error that the proxy gives itself. The header keeps clients of
// Anthropic's API from trying again in silence.
func answer(w http.ResponseWriter, status int, text string) {
	h := w.Header()
	h.Set("X-Should-Retry", "false")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text) // an error is the client's end of the connection
}

// verdictOf checks a host as the client wrote it and gives its normal form.
func (e *enforcer) verdictOf(host string, port int) (string, Verdict, *refusalError) {
	name, addr, err := normalHost(host)
	if err != nil {
		// No host: nothing can be learnt from it.
		return "", Verdict{}, &refusalError{
			status: http.StatusBadRequest, scanner: "parser",
			reason: fmt.Sprintf("not a host: %q: %v", shorten(host), err),
		}
	}
	v := e.policy.check(name, addr.IsValid(), port)
	if v.Allowed {
		return name, v, nil
	}
	scanner := "allowlist"
	if v.Rule != "" {
		scanner = "port"
	}
	return name, v, &refusalError{status: http.StatusForbidden, scanner: scanner, reason: v.Reason, rule: v.Rule}
}

// admit is verdictOf with what else is asked of every request: that it hides no
// secret where anybody can read it, and is not one too many. While a policy is
// being learnt, a refusal by these is noted and not made.
func (s *Server) admit(e *enforcer, r *http.Request, raw string, port int) (string, Verdict, *refusalError) {
	host, v, ref := e.verdictOf(raw, port)
	if host == "" {
		return "", v, ref
	}
	if ref == nil {
		if kind := secretIn(host); kind != "" {
			ref = &refusalError{
				status: http.StatusForbidden, scanner: "dlp", rule: v.Rule,
				reason: "the host's name holds what looks like " + kind,
			}
		}
	}
	if ref == nil && r.Method != http.MethodConnect {
		ref = leaks(r)
	}
	if ref != nil {
		if !e.learn {
			return host, v, ref
		}
		s.wouldRefuse(r.Method, joinHostPort(host, port), ref)
	}
	return host, v, s.rates.take(v.Rule)
}

// wouldRefuse notes what is let through only because a policy is being learnt.
func (s *Server) wouldRefuse(method, target string, ref *refusalError) {
	s.log.log(line{
		Event: EventWouldBlock, Method: method, Target: target,
		Scanner: ref.scanner, Reason: ref.reason, Rule: ref.rule,
	})
}

// asRefusal finds the refusal in an error, or makes one of a gateway that
// failed.
func asRefusal(err error) *refusalError {
	var ref *refusalError
	if errors.As(err, &ref) {
		return ref
	}
	return &refusalError{status: http.StatusBadGateway, scanner: "dial", reason: err.Error()}
}

func shownHosts(p Policy) []string {
	hosts := p.Hosts()
	return hosts[:min(len(hosts), maxLogAllow)]
}
