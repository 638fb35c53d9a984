package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bot-bottle/bottle/egress/hostrule"
	"github.com/bot-bottle/bottle/egress/inject"
)

// Server is the built-in proxy, created by [New]. It serves until the context
// of [Server.Serve] ends.
type Server struct {
	limits  limits
	rates   *rates
	log     *logger
	current atomic.Pointer[enforcer]
	conns   atomic.Int64 // open client connections, tunnels included
	open    atomic.Int64 // open tunnels
	plain   atomic.Int64 // plain HTTP requests in progress
	tunnels sync.WaitGroup
	reload  sync.Mutex
	memory  *memory
	lookups chan struct{}
	// listenOn replaces the configuration's address; may be empty.
	listenOn string
	// selfNames are host names of the sandbox, normalized.
	selfNames []string
	listen    atomic.Pointer[netip.AddrPort]
	inner     *innerListener // for plain HTTP in tunnels
	// injector serves tunnels to hosts with secrets; nil: there are none.
	injector atomic.Pointer[inject.Injector]
}

// enforcer is a policy with the components that enforce it. It is replaced
// atomically, so that a request is checked and dialed under the same policy.
type enforcer struct {
	policy    Policy
	learn     bool
	dialer    *dialer
	transport *http.Transport
}

// New creates a proxy with the policy and limits of a configuration; cfg.Listen
// is not used. The log is written to logger as JSON lines, one Write each.
func New(cfg Config, logger io.Writer) (*Server, error) {
	l, err := cfg.limits()
	if err != nil {
		return nil, err
	}
	s := &Server{
		limits: l, rates: newRates(l.requests), log: newLogger(logger),
		memory: newMemory(), lookups: make(chan struct{}, maxLookups), selfNames: cfg.selfNames(),
	}
	e, err := s.newEnforcer(cfg)
	if err != nil {
		return nil, err
	}
	s.current.Store(e)
	injector, err := s.newInjector(cfg.Inject, e.policy)
	if err != nil {
		return nil, err
	}
	s.injector.Store(injector)
	return s, nil
}

// newInjector returns the injector of a configuration and its policy; nil: it has none.
func (s *Server) newInjector(c *Inject, p Policy) (*inject.Injector, error) {
	return newInjector(c, inject.Config{
		Hosts: p.ruleTargets(), Check: s.checkRequest, Refs: hostrule.PushRefs, Dial: s.dialInjected, Report: s.log.injected,
	})
}

// reloadSecrets takes over secrets. A server that was started without any, for a bottle
// that was not in use yet, gets its injector.
func (s *Server) reloadSecrets(c *Inject, p Policy) error {
	if in := s.injector.Load(); in != nil || c == nil {
		return reloadSecrets(in, c)
	}
	in, err := s.newInjector(c, p)
	if err == nil {
		s.injector.Store(in)
	}
	return err
}

// Reload applies the policy of cfg to all requests that begin after it returns.
// Open tunnels and requests continue; limits and timeouts do not change. If it
// fails, the current policy stays in force.
func (s *Server) Reload(cfg Config) error {
	s.reload.Lock()
	defer s.reload.Unlock()
	e, err := s.newEnforcer(cfg)
	if err == nil {
		err = s.reloadSecrets(cfg.Inject, e.policy)
	}
	if err != nil {
		return err
	}
	old := s.current.Swap(e)
	old.transport.CloseIdleConnections()
	s.rates.prune(e.policy)
	s.log.log(line{Event: EventReload, Allow: loggedHosts(e.policy)})
	return nil
}

func (s *Server) newEnforcer(cfg Config) (*enforcer, error) {
	p, err := cfg.Policy()
	if err != nil {
		return nil, err
	}
	d := newDialer(p, cfg.Resolver, s.limits.dial)
	d.lookups, d.self = s.lookups, s.isProxy
	return &enforcer{policy: p, learn: cfg.Learn, dialer: d, transport: newTransport(d, s.limits, s.memory)}, nil
}

// Serve accepts clients on l until ctx ends, then closes l and all tunnels and
// returns nil, within about a second. It always closes l, which has to be TCP.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.listen.Store(listenAddr(l))
	s.inner = newInnerListener(l.Addr())
	srv := s.httpServer(ctx)
	failed := make(chan error, 1)
	innerDone := make(chan struct{})
	go func() {
		defer close(innerDone)
		_ = srv.Serve(s.inner) // only reports that the server was closed
	}()
	go func() { failed <- srv.Serve(watchedListener{l, ctx, s}) }()
	select {
	case err := <-failed:
		cancel()
		s.stop(srv)
		<-innerDone
		s.endTunnels()
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	s.stop(srv)
	<-failed //nolint:errcheck // only reports that the server was closed
	<-innerDone
	s.endTunnels()
	return nil
}

func (s *Server) httpServer(ctx context.Context) *http.Server {
	return &http.Server{
		Handler:                      http.HandlerFunc(s.handle),
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            s.limits.header,
		IdleTimeout:                  2 * time.Minute,
		MaxHeaderBytes:               64 << 10,
		ErrorLog:                     log.New(io.Discard, "", 0), // only client errors
		BaseContext:                  func(net.Listener) context.Context { return ctx },
		ConnContext:                  s.connContext,
		ConnState:                    s.connState,
	}
}

// stopTimeout is how long requests and tunnels may take to end at shutdown.
const stopTimeout = 400 * time.Millisecond

// stop shuts down srv, whose context has ended: requests are ending already, and those that
// take too long are closed.
func (s *Server) stop(srv *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		_ = srv.Close() // the listener is closed; nothing else can fail
	}
	s.current.Load().transport.CloseIdleConnections()
}

// endTunnels waits for the tunnels, which are ending, once no more can begin.
func (s *Server) endTunnels() {
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

// overLimitKey marks the context of a connection over the limit.
type overLimitKey struct{}

// spareConnections is how many clients over the limit get an error response;
// any beyond those are closed without one.
const spareConnections = 64

// connContext counts a new connection, unless that was counted when it was accepted.
func (s *Server) connContext(ctx context.Context, c net.Conn) context.Context {
	w := c.(*watchedConn) // of both listeners
	w.ctx = ctx
	ctx = context.WithValue(ctx, connKey{}, w)
	if w.nth == 0 {
		w.nth = s.conns.Add(1)
	}
	over := w.nth - int64(s.limits.connections)
	if over <= 0 {
		return ctx
	}
	if over > spareConnections {
		s.log.log(line{Event: EventBlocked, Scanner: "ratelimit", Reason: s.tooMany() + ": closed without a response"})
		_ = c.Close() // refused in any case
	}
	return context.WithValue(ctx, overLimitKey{}, true)
}

func (s *Server) tooMany() string {
	return fmt.Sprintf("more than %d connections are open", s.limits.connections)
}

// connState uncounts a connection. A hijacked one is counted by its tunnel.
func (s *Server) connState(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateClosed, http.StateHijacked:
		s.conns.Add(-1)
	case http.StateIdle: // also when the next request is buffered already
		c.(*watchedConn).awaitRequest()
	}
}

// handle dispatches a client's request by its kind.
func (s *Server) handle(w http.ResponseWriter, r *http.Request) {
	defer s.logPanic(r)
	c := r.Context().Value(connKey{}).(*watchedConn)
	c.handled.Store(true)
	over, _ := r.Context().Value(overLimitKey{}).(bool)
	ref := s.checkHead(c, r)
	switch {
	case ref != nil:
		// They are what takes the memory, and the response may have to wait.
		r.Header, r.URL = nil, nil
		r.RequestURI = strings.Clone(r.RequestURI[:min(len(r.RequestURI), maxURL)])
		w.Header().Set("Connection", "close")
		s.refuse(w, r, ref)
	case c.tunnel == nil && isHealth(r):
		s.health(w)
	case over:
		w.Header().Set("Connection", "close")
		s.refuse(w, r, &refusalError{
			status: http.StatusTooManyRequests, scanner: "ratelimit", reason: s.tooMany(),
		})
	case c.tunnel != nil:
		s.forwardInTunnel(w, r, *c.tunnel)
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

// logPanic logs a panic, which ends the request without a response.
func (s *Server) logPanic(r *http.Request) {
	err := recover()
	if err == nil {
		return
	}
	if err != http.ErrAbortHandler { //nolint:errorlint // the value that net/http compares
		s.logInternal(r.Method, r.RequestURI, err)
	}
	panic(http.ErrAbortHandler)
}

func (s *Server) logInternal(method, url string, err any) {
	s.log.log(line{Event: EventError, Method: method, URL: url, Reason: fmt.Sprintf("internal error: %v", err)})
}

// checkHead checks the size of a request's head.
func (s *Server) checkHead(c *watchedConn, r *http.Request) *refusalError {
	if err := c.head.settle(r.RequestURI, r.Header); err != nil {
		return asRefusal(err)
	}
	if len(r.RequestURI) > maxURL {
		return &refusalError{
			status: http.StatusForbidden, scanner: "length",
			reason: fmt.Sprintf("URL is longer than %d bytes", maxURL),
		}
	}
	return nil
}

// isHealth requires origin form: http://host/health is a request to a host.
func isHealth(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && r.RequestURI == "/health"
}

func (s *Server) health(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	// An error means that the client has closed the connection.
	_, _ = fmt.Fprintf(w, `{"status":"healthy","proxy":"builtin","tunnels":%d,"hosts":%d}`+"\n",
		s.open.Load(), len(s.current.Load().policy.Allow))
}

// refuse logs a refusal and sends it to the client.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, ref *refusalError) {
	ln := line{Event: EventBlocked, Method: r.Method, Scanner: ref.scanner, Reason: ref.reason, Rule: ref.rule, Status: ref.status}
	prefix := "blocked: "
	if r.Method == http.MethodConnect {
		prefix = "CONNECT blocked: "
		ln.Target = r.RequestURI
	} else {
		ln.URL = r.RequestURI
	}
	if c := r.Context().Value(connKey{}).(*watchedConn); c.tunnel != nil {
		ln.Target = c.tunnel.String()
	}
	if ref.scanner == "dial" {
		ln.Event = EventError
		prefix = ""
	}
	s.log.log(ln)
	if r.ContentLength != 0 {
		// The HTTP server would wait for the body before it sends the response.
		w.Header().Set("Connection", "close")
	}
	respond(w, ref.status, prefix+ref.reason+"\n"+hint(ref))
}

// hint is the second line of a refusal's response: how to allow the request.
func hint(ref *refusalError) string {
	switch ref.scanner {
	case "allowlist", "port":
		return "Only the user who runs this bottle can allow it, on the host, with bottle allow.\n"
	}
	return ""
}

// respond sends an error of the proxy itself. X-Should-Retry prevents clients of
// Anthropic's API from retrying silently.
func respond(w http.ResponseWriter, status int, text string) {
	h := w.Header()
	h.Set("X-Should-Retry", "false")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text) // an error means that the client has closed the connection
}

// check checks a host as the client sent it and returns its normalized form, or
// "" if it is not a valid host.
func (e *enforcer) check(host string, port int) (string, Verdict, *refusalError) {
	name, addr, err := normalHost(host)
	if err != nil {
		return "", Verdict{}, &refusalError{
			status: http.StatusBadRequest, scanner: "parser",
			reason: fmt.Sprintf("invalid host %q: %v", shorten(maskText(host)), err),
		}
	}
	v := e.policy.check(name, addr.IsValid(), port)
	if v.Allowed {
		return name, v, nil
	}
	scanner := "allowlist"
	switch {
	case v.Denied:
		scanner = scannerDeny
	case v.Rule != "":
		scanner = "port"
	}
	return name, v, &refusalError{status: http.StatusForbidden, scanner: scanner, reason: v.Reason, rule: v.Rule}
}

// admit runs the checks that every request must pass: the policy, the search for
// secrets in clear text, and the rate limit. While a policy is being learned,
// refusals by the first two are only logged, except for those by a deny entry.
func (s *Server) admit(e *enforcer, r *http.Request, raw string, port int) (string, Verdict, *refusalError) {
	host, v, ref := e.check(raw, port)
	if host == "" {
		return "", v, ref
	}
	if ref != nil {
		if ref = s.explainSelf(r, host, ref); ref.scanner == "self" {
			return host, v, ref
		}
	}
	if ref == nil {
		if kind := secretInHost(host); kind != "" {
			ref = &refusalError{
				status: http.StatusForbidden, scanner: "dlp", rule: v.Rule,
				reason: "host name contains what looks like " + kind,
			}
		}
	}
	if ref == nil && r.Method != http.MethodConnect {
		ref = scanRequest(r)
	}
	if ref != nil {
		if !e.learn || v.Denied {
			return host, v, ref
		}
		s.logWouldBlock(r.Method, joinHostPort(host, port), ref)
	}
	return host, v, s.rates.take(v.Rule)
}

// logWouldBlock logs a request that is allowed only because a policy is being
// learned.
func (s *Server) logWouldBlock(method, target string, ref *refusalError) {
	s.log.log(line{
		Event: EventWouldBlock, Method: method, Target: target,
		Scanner: ref.scanner, Reason: ref.reason, Rule: ref.rule,
	})
}

// asRefusal returns the refusal that an error wraps, or one with status 502.
func asRefusal(err error) *refusalError {
	var ref *refusalError
	if errors.As(err, &ref) {
		return ref
	}
	return &refusalError{status: http.StatusBadGateway, scanner: "dial", reason: err.Error()}
}

func loggedHosts(p Policy) []string {
	hosts := p.Hosts()
	return hosts[:min(len(hosts), maxLogAllow)]
}
