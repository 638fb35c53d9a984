package egress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bot-bottle/bottle/egress/hostrule"
	"github.com/bot-bottle/bottle/egress/inject"
)

// Front stands in front of another proxy, which decides about every request and connects
// to every host. Front terminates TLS in tunnels to hosts with secrets, for each of which
// it sends a CONNECT to the other proxy. Every other connection it relays to that proxy
// byte for byte, unchanged in both directions.
//
// It has no policy of its own. What it logs is what the other proxy cannot see: requests
// in terminated tunnels.
type Front struct {
	upstream string
	limits   limits
	log      *logger
	injector *inject.Injector
	open     atomic.Int64 // connections
	served   sync.WaitGroup
}

// NewFront creates the process in front of the proxy at cfg.Upstream.
func NewFront(cfg Config, logger io.Writer) (*Front, error) {
	l, err := cfg.limits()
	if err != nil {
		return nil, err
	}
	if cfg.Inject == nil {
		return nil, errors.New("inject: missing secrets to insert in front of another proxy")
	}
	f := &Front{upstream: cfg.Upstream, limits: l, log: newLogger(logger)}
	f.injector, err = newInjector(cfg.Inject, inject.Config{Refs: hostrule.PushRefs, Dial: f.dialInjected, Report: f.report})
	return f, err
}

func (f *Front) main(ctx context.Context, listen, configPath string, reload <-chan os.Signal, stderr io.Writer) error {
	debug.SetMemoryLimit(memoryLimit)
	l, err := Listen(ctx, listen)
	if err != nil {
		return fmt.Errorf("listen for proxy clients: %w", err)
	}
	f.log.log(line{Event: EventStartup, Listen: l.Addr().String(), Mode: "front"})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- f.Serve(ctx, l) }()
	for {
		select {
		case <-reload:
			f.reload(configPath, stderr)
		case err := <-served:
			f.log.log(line{Event: EventShutdown, Reason: reasonOf(err)})
			return err
		}
	}
}

// reload takes over the values of secrets.
func (f *Front) reload(path string, stderr io.Writer) {
	cfg, err := loadConfig(path, "")
	if err == nil {
		err = reloadSecrets(f.injector, cfg.Inject)
	}
	if err == nil {
		f.log.log(line{Event: EventReload})
		return
	}
	f.log.log(line{Event: EventError, Reason: "secrets not reloaded, the current ones stay in force: " + err.Error()})
	// A closed stderr must not end the process.
	_, _ = fmt.Fprintf(stderr, "bottle proxy: secrets not reloaded, the current ones stay in force: %v\n", err)
}

// Serve accepts clients on l until ctx ends, and then closes all connections.
func (f *Front) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer f.served.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil // the listener was closed
		}
		if err != nil {
			return fmt.Errorf("serve on %s: %w", l.Addr(), err)
		}
		client, ok := conn.(*net.TCPConn)
		if !ok || f.open.Add(1) > int64(f.limits.connections) {
			f.open.Add(-1)
			f.log.log(line{Event: EventBlocked, Scanner: "ratelimit", Reason: fmt.Sprintf("more than %d connections are open: closed without a response", f.limits.connections)})
			_ = conn.Close() // refused in any case
			continue
		}
		f.served.Go(func() {
			defer f.open.Add(-1)
			f.serve(ctx, client)
		})
	}
}

// serve serves one connection. Only its first request decides what becomes of it: a client
// that asks for a tunnel in a later one gets an untouched one from the other proxy, in
// which a placeholder is worth nothing.
func (f *Front) serve(ctx context.Context, client *net.TCPConn) {
	defer func() { _ = client.Close() }()
	defer context.AfterFunc(ctx, func() { _ = client.Close() })()
	head, early, target := f.readHead(client)
	switch {
	case len(head) == 0: // the client has left, or has sent nothing
	case target != "":
		f.terminate(ctx, &earlyConn{TCPConn: client, early: early}, target)
	default:
		f.relay(ctx, client, head)
	}
}

// maxHead bounds a request's head as the built-in proxy does.
const maxHead = 64 << 10

// readHead reads a client's first request. It returns what it has read, and of a CONNECT to
// a host with secrets the target, and what the client has sent into the tunnel already. What
// it cannot parse is for the other proxy to refuse.
func (f *Front) readHead(client *net.TCPConn) (head, early []byte, target string) {
	var read bytes.Buffer
	_ = client.SetReadDeadline(time.Now().Add(f.limits.header)) // a closed connection is noticed below
	br := bufio.NewReader(io.TeeReader(io.LimitReader(client, maxHead), &read))
	r, err := http.ReadRequest(br)
	_ = client.SetReadDeadline(time.Time{})
	if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
		return nil, nil, ""
	}
	if err != nil || r.Method != http.MethodConnect {
		return read.Bytes(), nil, ""
	}
	host, port, err := splitTarget(r.RequestURI, 0)
	if err != nil {
		return read.Bytes(), nil, ""
	}
	name, _, err := normalHost(host)
	if target = joinHostPort(name, port); err != nil || !f.injector.Terminates(target) {
		return read.Bytes(), nil, ""
	}
	early, _ = br.Peek(br.Buffered()) // all of it is there
	return read.Bytes(), early, target
}

// relay connects a client with the other proxy.
func (f *Front) relay(ctx context.Context, client *net.TCPConn, head []byte) {
	conn, err := f.connect(ctx)
	if err != nil {
		f.unavailable(client, err)
		return
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if _, err := conn.Write(head); err != nil {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { pipe(conn, client) })
	both.Go(func() { pipe(client, conn) })
	both.Wait()
}

// pipe copies until the source ends. After an error neither direction continues.
func pipe(to, from *net.TCPConn) {
	_, err := io.Copy(to, from)
	if err == nil {
		err = to.CloseWrite()
	}
	if err != nil {
		_, _ = to.Close(), from.Close()
	}
}

func (f *Front) connect(ctx context.Context) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: f.limits.dial}
	conn, err := d.DialContext(ctx, "tcp", f.upstream)
	if err != nil {
		return nil, fmt.Errorf("connect to the proxy: %w", err)
	}
	return conn.(*net.TCPConn), nil
}

func (f *Front) unavailable(client net.Conn, err error) {
	f.log.log(line{Event: EventError, Target: proxyTarget, Reason: err.Error()})
	// The client may have left.
	_, _ = io.WriteString(client, "HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\nContent-Type: text/plain\r\n\r\nbottle: the proxy cannot be reached\n")
}

// behindError is what the other proxy has answered to a CONNECT. It has logged why.
type behindError struct {
	status int
	text   string
}

func (e *behindError) Error() string {
	return fmt.Sprintf("the proxy answered %d: %s", e.status, strings.TrimSpace(e.text))
}

// dialInjected connects to a host with secrets, through the other proxy.
func (f *Front) dialInjected(ctx context.Context, _, target string) (net.Conn, error) {
	if first := firstConn(ctx); first != nil {
		return first, nil
	}
	return f.dial(ctx, target)
}

// maxAnswer bounds the text of the other proxy's refusal.
const maxAnswer = 4 << 10

func (f *Front) dial(ctx context.Context, target string) (_ net.Conn, err error) {
	conn, err := f.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = conn.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	// The other proxy resolves and dials meanwhile, within a limit of its own.
	_ = conn.SetDeadline(time.Now().Add(2 * f.limits.dial))
	if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", target); err != nil {
		return nil, fmt.Errorf("ask the proxy for %s: %w", target, err)
	}
	br := bufio.NewReader(conn)
	res, err := http.ReadResponse(br, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return nil, fmt.Errorf("ask the proxy for %s: %w", target, err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(res.Body, maxAnswer)) // what has arrived is enough
		return nil, &behindError{status: res.StatusCode, text: string(text)}
	}
	_ = conn.SetDeadline(time.Time{})
	if !stop() {
		return nil, ctx.Err()
	}
	early, _ := br.Peek(br.Buffered()) // all of it is there
	return &earlyConn{TCPConn: conn, early: early}, nil
}

// terminate serves a tunnel to a host with secrets, if the other proxy allows it.
func (f *Front) terminate(ctx context.Context, client net.Conn, target string) {
	upstream, err := f.dial(ctx, target)
	var refused *behindError
	switch {
	case errors.As(err, &refused):
		f.refuse(client, refused)
		return
	case err != nil:
		f.unavailable(client, err)
		return
	}
	ctx, end := context.WithTimeout(ctx, f.limits.tunnel)
	defer end()
	ctx, unused := withFirstConn(ctx, upstream)
	defer unused()
	if _, err = io.WriteString(client, established); err == nil {
		err = f.injector.ServeConn(ctx, client, target)
	}
	if alert := tls.AlertError(0); errors.As(err, &alert) {
		f.log.log(line{Event: EventError, Target: target, Reason: err.Error()}) // it may not trust the certificate
	}
}

// refuse passes on the other proxy's answer.
func (f *Front) refuse(client net.Conn, refused *behindError) {
	res := &http.Response{
		StatusCode: refused.status, ProtoMajor: 1, ProtoMinor: 1, Close: true, ContentLength: int64(len(refused.text)),
		Header: http.Header{"Content-Type": {"text/plain; charset=utf-8"}, "X-Should-Retry": {"false"}},
		Body:   io.NopCloser(strings.NewReader(refused.text)),
	}
	_ = res.Write(client) // the client may have left
}

// report logs what happens in a terminated tunnel, except what the other proxy has logged.
func (f *Front) report(e inject.Event) {
	var refused *behindError
	if !errors.As(e.Err, &refused) {
		f.log.injected(e)
	}
}
