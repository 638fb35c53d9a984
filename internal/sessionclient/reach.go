// Package sessionclient is the side of a session on the host: it connects with PID 1 of a
// sandbox, and forwards the streams of a process that PID 1 starts. It knows neither
// containerd nor the runtimes, and imports only small packages: cmd/bottle/fastexec uses it
// before the rest of the program is initialized, and before package net is.
package sessionclient

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	proto "github.com/bot-bottle/bottle/internal/sessionproto"
)

// ErrNotReached is wrapped if PID 1 could not be reached. It has no request then.
var ErrNotReached = errors.New("PID 1 of the sandbox was not reached")

// aliveInterval is how often the wait for PID 1 checks that there is someone to wait for.
const aliveInterval = 100 * time.Millisecond

// Reach connects with PID 1 of a running bottle. It listens on a socket in the guest
// directory, which PID 1 sees and nobody in the sandbox can change, tells PID 1 its name by
// the FIFO control, and returns the first connection. It waits no longer than the given time,
// while alive returns nil. An error wraps ErrNotReached.
func Reach(ctx context.Context, control, guest string, limit time.Duration, alive func() error) (*os.File, error) {
	conn, err := reachOnce(ctx, control, guest, limit, alive)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotReached, err)
	}
	return conn, nil
}

func reachOnce(ctx context.Context, control, guest string, limit time.Duration, alive func() error) (_ *os.File, err error) {
	// For reading too: the record stays in the FIFO until the shim reads it.
	fifo, err := os.OpenFile(control, os.O_RDWR|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = fifo.Close() }() // what was written is in it
	id, err := newID()
	if err != nil {
		return nil, err
	}
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
	for deadline := time.Now().Add(limit); ; {
		if err := l.SetDeadline(time.Now().Add(min(limit, aliveInterval))); err != nil {
			return nil, err
		}
		conn, err := accept(l)
		switch {
		case err == nil:
			return conn, nil
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return nil, err
		case ctx.Err() != nil:
			return nil, ctx.Err()
		}
		if err := alive(); err != nil {
			return nil, err
		}
		if time.Now().After(deadline) {
			return nil, err
		}
	}
}

// newID returns a random name of a client, as crypto/rand.Text does. That package is
// initialized later than those that this one needs.
func newID() (string, error) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
	random, err := os.Open("/dev/urandom")
	if err != nil {
		return "", err
	}
	defer func() { _ = random.Close() }() // nothing was written
	id := make([]byte, proto.IDLength)
	if _, err := random.Read(id); err != nil { // 256 bytes are always complete (urandom(4))
		return "", err
	}
	for i, b := range id {
		id[i] = alphabet[b%byte(len(alphabet))]
	}
	return string(id), nil
}

// listenIn listens on a socket in the guest directory, to which the agent's user may
// connect.
func listenIn(guest, name string) (l *os.File, err error) {
	dir, err := os.Open(guest)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }() // nothing was written
	var env syscall.Stat_t
	if err := syscall.Stat(filepath.Join(guest, "env"), &env); err != nil {
		return nil, fmt.Errorf("find the agent's user: %w", err)
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	// The length of a socket's address is limited, the length of the directory's path is not.
	path := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		return nil, errors.Join(os.NewSyscallError("bind", err), syscall.Close(fd))
	}
	at := filepath.Join(guest, name)
	if err := errors.Join(os.Chmod(at, 0o600), os.Chown(at, int(env.Uid), int(env.Gid)), syscall.Listen(fd, 1)); err != nil {
		return nil, errors.Join(err, syscall.Close(fd), os.Remove(at))
	}
	return os.NewFile(uintptr(fd), at), nil
}

// accept waits for a connection until the listener's deadline.
func accept(l *os.File) (*os.File, error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	conn, aerr := -1, error(nil)
	err = raw.Read(func(fd uintptr) bool {
		for {
			conn, _, aerr = syscall.Accept4(int(fd), syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK)
			if !errors.Is(aerr, syscall.EINTR) && !errors.Is(aerr, syscall.ECONNABORTED) {
				return !errors.Is(aerr, syscall.EAGAIN)
			}
		}
	})
	if err != nil {
		return nil, err
	}
	if aerr != nil {
		return nil, os.NewSyscallError("accept", aerr)
	}
	return os.NewFile(uintptr(conn), "session"), nil
}
