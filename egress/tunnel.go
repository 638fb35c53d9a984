package egress

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Reasons for ending a tunnel other than the peers closing it.
var (
	errTunnelAge  = errors.New("tunnel reached its maximum age")
	errTunnelIdle = errors.New("no data for the idle timeout")
	errShutdown   = errors.New("proxy is shutting down")
	errStalled    = errors.New("receiver accepted no data for the idle timeout")
)

// established is the response to a CONNECT that is allowed.
const established = "HTTP/1.1 200 Connection established\r\n\r\n"

// tunnel is one CONNECT: a client and an upstream connection, relayed.
type tunnel struct {
	server *Server
	target tunnelTarget
	rule   string
	// ssh permits streams that are not TLS.
	ssh bool
	// learn permits streams that are not TLS, or TLS for another host, and
	// logs them.
	learn    bool
	client   *net.TCPConn
	upstream *net.TCPConn
	early    []byte // read from the client and not relayed yet
	first    firstKind
	hello    charge // for early
	start    time.Time

	bytes atomic.Int64
	// lastActivity is when data last moved, in nanoseconds since start.
	lastActivity atomic.Int64
}

// serve relays until the tunnel ends or ctx is done, then closes both
// connections. If the client speaks plain HTTP, serve returns its connection and
// has not relayed anything.
func (t *tunnel) serve(ctx context.Context) (plain *watchedConn) {
	stop := context.AfterFunc(ctx, t.close)
	defer func() {
		if !stop() || plain == nil {
			t.close()
		}
	}()
	defer t.hello.release()
	if _, err := io.WriteString(t.client, established); err != nil {
		t.logFailure(ctx, err)
		return nil
	}
	if err := t.begin(); err != nil {
		t.logFailure(ctx, err)
		return nil
	}
	if t.first == firstHTTP {
		_ = t.upstream.Close() // unused: each request has a connection of its own
		plain = t.server.watch(t.client)
		plain.early = t.early
		return plain
	}
	t.server.log.log(line{Event: EventTunnelOpen, Method: http.MethodConnect, Target: t.target.String(), Rule: t.rule})
	err := t.relay()
	t.logEnd(ctx, err)
	return nil
}

// begin reads and checks the client's first bytes, unless the server may have to
// send first.
func (t *tunnel) begin() error {
	wait := t.server.limits.header
	switch {
	case t.ssh:
		return nil
	case t.learn:
		wait = min(wait, learnWait)
	}
	deadline := time.Now().Add(wait)
	err := t.readFirst(deadline)
	if t.learn && errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	if err != nil || t.first == firstHTTP {
		return err
	}
	return t.checkFirst(deadline)
}

// learnWait is how long the client's first bytes are awaited while a policy is
// being learned. The server may be the one that sends first.
const learnWait = time.Second

// close closes both connections, which unblocks both directions.
func (t *tunnel) close() {
	// Errors do not matter: the connections are no longer needed.
	_ = t.client.Close()
	_ = t.upstream.Close()
}

// relay copies data in both directions until both have ended or one has failed.
func (t *tunnel) relay() error {
	var down error
	var wg sync.WaitGroup
	wg.Go(func() {
		if down = t.pump(t.client, t.upstream); down != nil {
			t.close()
		}
	})
	up := t.relayUp()
	if up != nil {
		t.close()
	}
	wg.Wait()
	// The first failure closes the connections of the other direction, whose
	// error is then meaningless.
	if up == nil || errors.Is(up, net.ErrClosed) {
		return down
	}
	return up
}

func (t *tunnel) relayUp() error {
	if t.first == firstNone && (t.ssh || t.learn) {
		// Data from upstream is relayed already: the server may send first.
		if err := t.awaitFirst(); err != nil {
			return err
		}
	}
	if len(t.early) > 0 {
		if err := t.upstream.SetWriteDeadline(time.Now().Add(t.server.limits.idle)); err != nil {
			return err
		}
		n, err := t.upstream.Write(t.early)
		t.count(int64(n))
		if err != nil {
			return err
		}
		t.early = nil
		t.hello.release()
	}
	return t.pump(t.upstream, t.client)
}

// awaitFirst checks the first bytes of a client that may wait for the server.
func (t *tunnel) awaitFirst() error {
	if len(t.early) == 0 {
		if err := t.awaitReadable(t.client); err != nil {
			return err
		}
	}
	deadline := time.Now().Add(t.server.limits.header)
	if err := t.readFirst(deadline); err != nil {
		return err
	}
	return t.checkFirst(deadline)
}

// spliceTime is how long a direction without data keeps the pipe that splice
// uses. Pipes are a scarce resource: see /proc/sys/fs/pipe-user-pages-soft.
const spliceTime = time.Second

// pump copies from src to dst until EOF, then shuts down writes to dst. ReadFrom
// splices in the kernel and reports nothing until it returns, so deadlines
// interrupt it to find out whether data moved.
func (t *tunnel) pump(dst, src *net.TCPConn) error {
	for {
		if err := t.awaitReadable(src); err != nil {
			return err
		}
		now := time.Now()
		stallDeadline := now.Add(t.server.limits.idle + spliceTime)
		err := errors.Join(src.SetReadDeadline(now.Add(min(t.idleCheck(), spliceTime))), dst.SetWriteDeadline(stallDeadline))
		if err != nil {
			return err
		}
		n, err := dst.ReadFrom(src)
		t.count(n)
		switch {
		case err == nil:
			return closeWrite(dst)
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case time.Now().After(stallDeadline):
			return errStalled // the write timed out: data is lost
		}
	}
}

// closeWrite shuts down writes to dst. A peer that closed with unread data has
// reset the connection already (ENOTCONN, shutdown(2)): that is not an error.
func closeWrite(dst *net.TCPConn) error {
	err := dst.CloseWrite()
	if errors.Is(err, unix.ENOTCONN) {
		return nil
	}
	return err
}

// awaitReadable waits until src is readable or the tunnel is idle.
func (t *tunnel) awaitReadable(src *net.TCPConn) error {
	for {
		if err := src.SetReadDeadline(time.Now().Add(t.idleCheck())); err != nil {
			return err
		}
		err := waitReadable(src)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		if t.idle() {
			return errTunnelIdle
		}
	}
}

// idleCheck is how often a direction checks whether the tunnel is idle.
func (t *tunnel) idleCheck() time.Duration {
	return max(t.server.limits.idle/4, time.Millisecond)
}

func (t *tunnel) count(n int64) {
	if n > 0 {
		t.bytes.Add(n)
		t.lastActivity.Store(int64(time.Since(t.start)))
	}
}

// idle reports whether no data moved in either direction for the idle timeout.
// Each direction updates lastActivity at least four times per timeout.
func (t *tunnel) idle() bool {
	return time.Since(t.start)-time.Duration(t.lastActivity.Load()) >= t.server.limits.idle
}

// waitReadable waits until a Read of c would not block: data, EOF or an error.
// It holds no buffer and obeys c's read deadline.
func waitReadable(c *net.TCPConn) error {
	_, err := peek(c)
	return err
}

// peek is waitReadable, and returns 0 at EOF and 1 if there is data, which it does not read.
func peek(c *net.TCPConn) (n int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var data [1]byte
	var peekErr error
	err = raw.Read(func(fd uintptr) bool {
		n, _, peekErr = unix.Recvfrom(int(fd), data[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		for errors.Is(peekErr, unix.EINTR) {
			n, _, peekErr = unix.Recvfrom(int(fd), data[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		}
		return !errors.Is(peekErr, unix.EAGAIN)
	})
	if err != nil {
		return 0, err
	}
	return max(n, 0), peekErr
}

// logFailure logs why a tunnel failed after the 200 response was sent.
func (t *tunnel) logFailure(ctx context.Context, err error) {
	var wrong *sniError
	ref := &refusalError{scanner: "sni"}
	switch {
	case errors.As(err, &wrong):
		t.server.log.log(line{
			Event: EventSNIMismatch, ConnectHost: t.target.String(), SNIHost: wrong.name,
			Scanner: "sni", Reason: wrong.Error(), Rule: t.rule,
		})
	case errors.Is(err, errNotTLS), errors.As(err, &ref):
		t.server.log.log(line{
			Event: EventBlocked, Target: t.target.String(), Method: http.MethodConnect,
			Scanner: ref.scanner, Reason: err.Error(), Rule: t.rule,
		})
	default:
		t.server.log.log(line{Event: EventError, Target: t.target.String(), Reason: t.cause(ctx, err)})
	}
}

func (t *tunnel) logEnd(ctx context.Context, err error) {
	var wrong *sniError
	if errors.As(err, &wrong) {
		t.logFailure(ctx, err)
	}
	t.server.log.log(line{
		Event: EventTunnelClose, Method: http.MethodConnect, Target: t.target.String(), Rule: t.rule, Reason: t.cause(ctx, err),
		TotalBytes: ptr(t.bytes.Load()), DurationMS: ptr(time.Since(t.start).Milliseconds()),
	})
}

// cause returns why the tunnel ended: the context, if that ended it, or err.
func (t *tunnel) cause(ctx context.Context, err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(context.Cause(ctx), errTunnelAge):
		return errTunnelAge.Error()
	case ctx.Err() != nil:
		return errShutdown.Error()
	}
	return err.Error()
}
