package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/egress"
)

// The built-in proxy's default timeouts of an idle tunnel and of any tunnel.
const (
	idleTimeout   = time.Hour
	tunnelTimeout = 24 * time.Hour
)

// loopback resolves every name to 127.0.0.1.
type loopback struct{}

func (loopback) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
}

// proxy prints its address and serves until ctx is done.
func proxy(ctx context.Context, port, scale int) error {
	s, err := egress.New(egress.Config{
		Resolver: loopback{}, IdleTimeout: egress.Duration(idleTimeout / time.Duration(scale)),
		TunnelTimeout: egress.Duration(tunnelTimeout / time.Duration(scale)),
		Entries:       egress.Entries{SSH: []string{fmt.Sprintf("bench.test:%d", port)}, AllowPrivate: []string{"127.0.0.0/8"}},
	}, io.Discard)
	if err != nil {
		return err
	}
	l, err := egress.Listen(ctx, "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return s.Serve(ctx, l)
}

// relay prints its address and forwards connections in the simplest way.
func relay(ctx context.Context, port int) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	fmt.Println(l.Addr())
	for {
		c, err := l.Accept()
		if err != nil {
			return nil // closed
		}
		go func() {
			defer func() { _ = c.Close() }()
			up, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				return
			}
			defer func() { _ = up.Close() }()
			back := make(chan struct{})
			go func() {
				_, _ = io.Copy(c, up)
				close(back)
			}()
			_, _ = io.Copy(up, c)
			_ = up.(*net.TCPConn).CloseWrite()
			<-back
		}()
	}
}

// child starts this program in a role.
func child(ctx context.Context, role string, port, scale int) (addr string, pid int, stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return "", 0, nil, err
	}
	cmd := exec.CommandContext(ctx, self, "--role", role, "--port", strconv.Itoa(port), "--scale", strconv.Itoa(scale))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", 0, nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", 0, nil, err
	}
	stop = func() { _ = cmd.Process.Signal(unix.SIGTERM); _ = cmd.Wait() }
	addr, err = bufio.NewReader(out).ReadString('\n')
	return strings.TrimSpace(addr), cmd.Process.Pid, stop, err
}

// slice is the number of bytes between two acknowledgements.
const slice = 64 << 20

// serve is the target server. A stream that begins with "S" gets a byte for each
// slice, a stream that begins with "E" gets its data back.
func serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = c.Close() }()
			kind := make([]byte, 1)
			if _, err := io.ReadFull(c, kind); err != nil {
				return
			}
			if kind[0] == 'E' {
				_, _ = io.Copy(c, c)
				return
			}
			for buf := make([]byte, 1<<20); ; {
				for left := slice; left > 0; {
					n, err := c.Read(buf[:min(left, len(buf))])
					if left -= n; err != nil {
						return
					}
				}
				if _, err := c.Write(kind); err != nil {
					return
				}
			}
		}()
	}
}
