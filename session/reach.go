package session

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	proto "github.com/bot-bottle/bottle/internal/sessionproto"
	"github.com/bot-bottle/bottle/runtime"
)

// errNotReached is wrapped if PID 1 could not be reached. It has no request then.
var errNotReached = errors.New("PID 1 of the sandbox was not reached")

// reachTime bounds the wait for PID 1, which may not have begun to run on a busy host. What
// is in the sandbox can make it as long as that.
const reachTime = 5 * time.Second

// aliveInterval is how often that wait checks that there is someone to wait for.
const aliveInterval = 100 * time.Millisecond

// ask connects with PID 1 of a running bottle and sends a request. The error wraps
// errNotReached if PID 1 has nothing of the request.
func ask(ctx context.Context, rt *runtime.Client, name string, req proto.Request) (net.Conn, *runtime.Beside, error) {
	beside := rt.Beside(ctx, name)
	if beside == nil {
		return nil, nil, fmt.Errorf("%w: %w", errNotReached, ErrNotRunning)
	}
	conn, err := reach(ctx, rt.Control(name), GuestDir(rt.Dir(name)), beside.Running)
	if err != nil {
		return nil, nil, err
	}
	// What is connected may not read it.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	_, err = conn.Write(proto.JSON(proto.KindRequest, req))
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("ask PID 1 of %s: %w", name, err), conn.Close())
	}
	return conn, beside, nil
}

// reach connects with PID 1 of a running bottle. It listens on a socket in the guest
// directory, which PID 1 sees and nobody in the sandbox can change, tells PID 1 its name by
// the FIFO control, and returns the first connection. An error wraps errNotReached.
func reach(ctx context.Context, control, guest string, alive func() bool) (net.Conn, error) {
	conn, err := reachOnce(ctx, control, guest, alive)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotReached, err)
	}
	return conn, nil
}

func reachOnce(ctx context.Context, control, guest string, alive func() bool) (_ net.Conn, err error) {
	// For reading too: the record stays in the FIFO until the shim reads it.
	fifo, err := os.OpenFile(control, os.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = fifo.Close() }() // what was written is in it
	id := rand.Text()
	l, err := listenIn(guest, proto.ClientSocket(id))
	if err != nil {
		return nil, err
	}
	defer func() {
		_ = l.Close() // the connection remains
		_ = os.Remove(filepath.Join(guest, proto.ClientSocket(id)))
	}()
	if err := fifo.SetWriteDeadline(time.Now().Add(aliveInterval)); err != nil {
		return nil, err
	}
	if _, err := fifo.Write(proto.Record(id)); err != nil { // full: nobody reads
		return nil, err
	}
	for deadline := time.Now().Add(reachTime); ; {
		if err := l.SetDeadline(time.Now().Add(aliveInterval)); err != nil {
			return nil, err
		}
		conn, err := l.Accept()
		switch {
		case err == nil:
			return conn, nil
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return nil, err
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case !alive():
			return nil, ErrNotRunning
		case time.Now().After(deadline):
			return nil, err
		}
	}
}

// listenIn listens on a socket in the guest directory, to which the agent's user may
// connect.
func listenIn(guest, name string) (l *net.UnixListener, err error) {
	dir, err := os.Open(guest)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }() // nothing was written
	var env unix.Stat_t
	if err := unix.Stat(filepath.Join(guest, "env"), &env); err != nil {
		return nil, fmt.Errorf("find the agent's user: %w", err)
	}
	// The length of a socket's address is limited, the length of the directory's path is not.
	path := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
	l, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // by that path
	at := filepath.Join(guest, name)
	if err := errors.Join(os.Chmod(at, 0o600), os.Chown(at, int(env.Uid), int(env.Gid))); err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(at))
	}
	return l, nil
}
