package egress

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/bot-bottle/bottle/egress/inject"
)

// Inject names the files of a proxy that inserts secrets into requests. It terminates TLS
// for the hosts that have secrets, after the policy has allowed the CONNECT, and for no
// others. See package inject.
type Inject struct {
	// Secrets is a file of [inject.Encode].
	Secrets string `json:"secrets"`
	// Roots is a file in PEM with the authorities that may sign for these hosts.
	Roots string `json:"roots"`
}

// ScannerInject is the check that refuses a placeholder where its secret may not be.
const ScannerInject = "inject"

// read reads the file of secrets.
func (c *Inject) read() (*inject.CA, []inject.Secret, error) {
	data, err := os.ReadFile(c.Secrets)
	if err != nil {
		return nil, nil, fmt.Errorf("read secrets: %w", err)
	}
	return inject.Decode(data)
}

// newInjector returns the injector of a configuration, with what its files do not say; nil if
// it terminates no TLS.
func newInjector(c *Inject, with inject.Config) (*inject.Injector, error) {
	if c == nil {
		return nil, nil
	}
	ca, secrets, err := c.read()
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(c.Roots)
	if err != nil {
		return nil, fmt.Errorf("read certificate authorities: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read certificate authorities: no certificate in %s", c.Roots)
	}
	with.Secrets, with.CA, with.Roots = secrets, ca, roots
	return inject.New(with)
}

// reloadSecrets takes over the values of secrets for requests that begin later. What else
// the file says, such as a secret's hosts, does not change.
func reloadSecrets(in *inject.Injector, c *Inject) error {
	if c == nil || in == nil {
		return nil
	}
	_, secrets, err := c.read()
	if err != nil {
		return err
	}
	for _, one := range secrets {
		if err := in.SetValue(one.Name, one.Value); err != nil {
			return err
		}
	}
	return nil
}

// firstConnKey is the key of a chan net.Conn with the connection that a CONNECT has opened.
type firstConnKey struct{}

// withFirstConn returns a context with the connection that a CONNECT has opened. unused
// closes it if nothing has used it.
func withFirstConn(ctx context.Context, conn net.Conn) (_ context.Context, unused func()) {
	first := make(chan net.Conn, 1)
	first <- conn
	ctx = context.WithValue(ctx, firstConnKey{}, first)
	return ctx, func() {
		if conn := firstConn(ctx); conn != nil {
			_ = conn.Close()
		}
	}
}

// firstConn takes the connection of withFirstConn; nil: it was taken.
func firstConn(ctx context.Context) net.Conn {
	first, ok := ctx.Value(firstConnKey{}).(chan net.Conn)
	if !ok {
		return nil
	}
	select {
	case conn := <-first:
		return conn
	default:
		return nil
	}
}

// dialInjected connects to a host with secrets for a request in a tunnel to it. The
// connection of the CONNECT is used first. Others are checked by the policy in force: it
// may have changed since.
func (s *Server) dialInjected(ctx context.Context, _, address string) (net.Conn, error) {
	if first := firstConn(ctx); first != nil {
		return first, nil
	}
	host, port, err := splitTarget(address, 0)
	if err != nil {
		return nil, err
	}
	e := s.current.Load()
	name, v, ref := e.check(host, port)
	if ref != nil && (!e.learn || v.Denied) {
		return nil, ref
	}
	conn, err := e.dialer.dial(ctx, name, port)
	if err != nil {
		return nil, err // not a nil *net.TCPConn
	}
	return conn, nil
}

// terminate serves a tunnel to a host with secrets.
func (s *Server) terminate(ctx context.Context, t *tunnel) {
	ctx, end := s.beginTunnel(ctx)
	defer end()
	ctx, unused := withFirstConn(ctx, t.upstream)
	defer unused()
	s.log.log(line{Event: EventTunnelOpen, Method: http.MethodConnect, Target: t.target.String(), Rule: t.rule})
	client := &earlyConn{TCPConn: t.client, early: t.early}
	_, err := t.client.Write([]byte(established))
	if err == nil {
		err = s.injector.Load().ServeConn(ctx, client, t.target.String())
	}
	_ = t.client.Close()
	s.log.log(line{
		Event: EventTunnelClose, Method: http.MethodConnect, Target: t.target.String(), Rule: t.rule, Reason: t.cause(ctx, err),
		DurationMS: ptr(time.Since(t.start).Milliseconds()),
	})
}

// earlyConn is a client of whose data some was read already.
type earlyConn struct {
	*net.TCPConn
	early []byte
}

func (c *earlyConn) Read(p []byte) (int, error) {
	if len(c.early) == 0 {
		return c.TCPConn.Read(p)
	}
	n := copy(p, c.early)
	c.early = c.early[n:]
	return n, nil
}

// injected logs what happens in a terminated tunnel.
func (l *logger) injected(e inject.Event) {
	ln := line{Target: e.Target, Method: e.Method, Status: e.Status, Secrets: e.Secrets, Refs: e.Refs}
	if e.Path != "" {
		ln.URL = "https://" + e.Target + e.Path
	}
	if e.Err != nil {
		ln.Reason = e.Err.Error()
	}
	switch e.Kind {
	case inject.KindRequest:
		ln.Event, ln.TotalBytes, ln.DurationMS = EventRequest, ptr(e.Sent+e.Received), ptr(e.Duration.Milliseconds())
	case inject.KindEcho:
		ln.Event, ln.Reason = EventEcho, "the response had the secret in its "+e.Where
	case inject.KindMisuse:
		ln.Event, ln.Scanner = EventBlocked, ScannerInject
	case inject.KindRule:
		ln.Event, ln.Scanner = EventBlocked, ScannerRules
	case inject.KindHost:
		ln.Event, ln.Scanner = EventBlocked, "host"
		if e.Method == "" {
			ln.Scanner = "sni"
		}
	case inject.KindRefused:
		ln.Event, ln.Scanner = EventBlocked, "parser"
		if e.Status == http.StatusTooManyRequests || e.Where == "connection" {
			ln.Scanner = "ratelimit"
		}
	default:
		ln.Event = EventError
		var ref *refusalError
		if errors.As(e.Err, &ref) && ref.status == http.StatusForbidden {
			ln.Event, ln.Scanner, ln.Rule = EventBlocked, ref.scanner, ref.rule
		}
	}
	l.log(ln)
}
