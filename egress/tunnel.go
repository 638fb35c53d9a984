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

// Why a tunnel ended, when it was not the ends that ended it.
var (
	errTunnelAge  = errors.New("the tunnel reached its greatest age")
	errTunnelIdle = errors.New("nothing moved for the idle timeout")
	errStalled    = errors.New("the receiver took nothing for the idle timeout")
)

// tunnel is one CONNECT: two connections and what passes between them.
type tunnel struct {
	server *Server
	target string // host:port
	host   string // in its normal form
	rule   string
	// anyStream: what is not TLS may pass.
	anyStream bool
	// learn: what is neither TLS nor for the host passes, and is noted.
	learn    bool
	client   *net.TCPConn
	upstream *net.TCPConn
	early    []byte // what the client sent before it had the answer
	start    time.Time

	bytes atomic.Int64
	// moved is when bytes last moved, in nanoseconds since start.
	moved atomic.Int64
}

// serve runs the tunnel to its end and closes both connections. The end of ctx
// cuts it.
func (t *tunnel) serve(ctx context.Context) {
	defer t.close()
	defer context.AfterFunc(ctx, t.close)()
	if _, err := io.WriteString(t.client, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		t.logFailure(ctx, err)
		return
	}
	preface := t.early
	if !t.anyStream {
		var err error
		if preface, err = t.checkFirst(time.Now().Add(t.server.limits.header)); err != nil {
			t.logFailure(ctx, err)
			return
		}
	}
	t.server.log.log(line{Event: EventTunnelOpen, Method: http.MethodConnect, Target: t.target, Rule: t.rule})
	err := t.relay(preface)
	t.logEnd(ctx, err)
}

// close ends both directions at once, whatever they are waiting for.
func (t *tunnel) close() {
	// The connections are done with; there is nothing to do about an error.
	_ = t.client.Close()
	_ = t.upstream.Close()
}

// relay passes bytes both ways until both sides have ended, or one has failed.
// preface is what was read from the client already.
func (t *tunnel) relay(preface []byte) error {
	var down error
	var wg sync.WaitGroup
	wg.Go(func() {
		if down = t.pump(t.client, t.upstream); down != nil {
			t.close()
		}
	})
	up := t.relayUp(preface)
	if up != nil {
		t.close()
	}
	wg.Wait()
	// The first failure closes the connections under the other direction,
	// whose own error then says nothing.
	if up == nil || errors.Is(up, net.ErrClosed) {
		return down
	}
	return up
}

func (t *tunnel) relayUp(preface []byte) error {
	if t.anyStream {
		// The answers flow already: in ssh it is the server that may begin.
		var err error
		if preface, err = t.firstOfAny(); err != nil {
			return err
		}
	}
	if len(preface) > 0 {
		if err := t.upstream.SetWriteDeadline(time.Now().Add(t.server.limits.idle)); err != nil {
			return err
		}
		n, err := t.upstream.Write(preface)
		t.count(int64(n))
		if err != nil {
			return err
		}
	}
	return t.pump(t.upstream, t.client)
}

// firstOfAny is checkFirst for a client that may take its time to begin.
func (t *tunnel) firstOfAny() ([]byte, error) {
	if len(t.early) == 0 {
		if err := t.await(t.client); err != nil {
			return nil, err
		}
	}
	return t.checkFirst(time.Now().Add(t.server.limits.header))
}

// busyTime is how long a direction without data keeps the pipe that splice
// needs (pipes are few: /proc/sys/fs/pipe-user-pages-soft).
const busyTime = time.Second

// pump passes bytes from src to dst until src ends, and ends dst's direction
// with it. ReadFrom splices in the kernel, which tells nothing until it
// returns: so it is interrupted by deadlines to see whether anything moved.
func (t *tunnel) pump(dst, src *net.TCPConn) error {
	for {
		if err := t.await(src); err != nil {
			return err
		}
		now := time.Now()
		stalled := now.Add(t.server.limits.idle + busyTime)
		err := errors.Join(src.SetReadDeadline(now.Add(min(t.tick(), busyTime))), dst.SetWriteDeadline(stalled))
		if err != nil {
			return err
		}
		n, err := dst.ReadFrom(src)
		t.count(n)
		switch {
		case err == nil:
			return endWrites(dst)
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case time.Now().After(stalled):
			return errStalled // it was the write that timed out: bytes are lost
		}
	}
}

// endWrites tells dst that no more comes. One that has left already, with what
// came last unread, has reset the connection and needs no telling (ENOTCONN,
// shutdown(2)).
func endWrites(dst *net.TCPConn) error {
	err := dst.CloseWrite()
	if errors.Is(err, unix.ENOTCONN) {
		return nil
	}
	return err
}

// await waits until src can be read, or the tunnel is idle.
func (t *tunnel) await(src *net.TCPConn) error {
	for {
		if err := src.SetReadDeadline(time.Now().Add(t.tick())); err != nil {
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

// tick is how often a direction looks whether the tunnel is idle.
func (t *tunnel) tick() time.Duration {
	return max(t.server.limits.idle/4, time.Millisecond)
}

func (t *tunnel) count(n int64) {
	if n > 0 {
		t.bytes.Add(n)
		t.moved.Store(int64(time.Since(t.start)))
	}
}

// idle tells whether nothing moved for the idle timeout, in either direction.
// A direction reports what it moved at least once a tick, a quarter of that.
func (t *tunnel) idle() bool {
	return time.Since(t.start)-time.Duration(t.moved.Load()) >= t.server.limits.idle
}

// waitReadable waits, without holding a buffer, until a Read of c would not
// block: data, its end or an error. It obeys c's read deadline.
func waitReadable(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var peek [1]byte
	var peekErr error
	err = raw.Read(func(fd uintptr) bool {
		_, _, peekErr = unix.Recvfrom(int(fd), peek[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		for errors.Is(peekErr, unix.EINTR) {
			_, _, peekErr = unix.Recvfrom(int(fd), peek[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		}
		return !errors.Is(peekErr, unix.EAGAIN)
	})
	if err != nil {
		return err
	}
	return peekErr
}

// logFailure says why a tunnel that was answered with 200 never opened.
func (t *tunnel) logFailure(ctx context.Context, err error) {
	var wrong *sniError
	switch {
	case errors.As(err, &wrong):
		t.server.log.log(line{
			Event: EventSNIMismatch, ConnectHost: t.target, SNIHost: wrong.name,
			Scanner: "sni", Reason: wrong.Error(), Rule: t.rule,
		})
	case errors.Is(err, errNotTLS):
		t.server.log.log(line{Event: EventBlocked, Target: t.target, Method: http.MethodConnect, Scanner: "sni", Reason: err.Error(), Rule: t.rule})
	default:
		t.server.log.log(line{Event: EventError, Target: t.target, Reason: t.cause(ctx, err)})
	}
}

func (t *tunnel) logEnd(ctx context.Context, err error) {
	var wrong *sniError
	if errors.As(err, &wrong) {
		t.logFailure(ctx, err)
	}
	t.server.log.log(line{
		Event: EventTunnelClose, Method: http.MethodConnect, Target: t.target, Rule: t.rule, Reason: t.cause(ctx, err),
		TotalBytes: ptr(t.bytes.Load()), DurationMS: ptr(time.Since(t.start).Milliseconds()),
	})
}

// cause is what ended the tunnel: the context that cut it, if one did.
func (t *tunnel) cause(ctx context.Context, err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(context.Cause(ctx), errTunnelAge):
		return errTunnelAge.Error()
	case ctx.Err() != nil:
		return "the proxy is ending"
	}
	return err.Error()
}
