package guest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/bot-bottle/bottle/sshagent/relay"
)

// guestRelay runs the inner end of the ssh agent relay until standard input ends.
func guestRelay(args []string) int {
	if len(args) != 1 {
		fmt.Fprintln(os.Stderr, "bottle: expected exactly one socket path")
		return exitBottle
	}
	if err := listen(args[0]); err != nil {
		fmt.Fprintln(os.Stderr, "bottle: ssh agent:", err)
		return exitBottle
	}
	return 0
}

func listen(socket string) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return errors.Join(err, l.Close())
	}
	return relay.Listen(l, os.Stdin, os.Stdout)
}

// guestConnect connects standard input and output to a host through the egress
// proxy. It is ssh's ProxyCommand.
func guestConnect(args []string) int {
	if len(args) != 3 {
		fmt.Fprintln(os.Stderr, "bottle: expected a proxy address, a host and a port")
		return exitBottle
	}
	target := net.JoinHostPort(strings.Trim(args[1], "[]"), args[2])
	conn, rest, err := tunnel(args[0], target)
	if err != nil {
		fmt.Fprintf(os.Stderr, "bottle: connect to %s: %v\n", target, err)
		return 1
	}
	defer func() { _ = conn.Close() }()
	if err := join(conn, rest, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "bottle: connection to %s: %v\n", target, err)
		return 1
	}
	return 0
}

// join copies in both directions and returns when the host has closed its side. The
// end of in is forwarded as a half-close, because the host may still answer.
func join(conn *net.TCPConn, rest, in io.Reader, out io.Writer) error {
	go func() {
		_, _ = io.Copy(conn, in)
		_ = conn.CloseWrite()
	}()
	_, err := io.Copy(out, rest)
	return err
}

// tunnelTimeout is how long to wait for the proxy's response. The proxy's own dial
// timeout is shorter.
const tunnelTimeout = time.Minute

// maxRefusal is how much of a refusal is printed, in bytes.
const maxRefusal = 512

// tunnel opens a connection through an HTTP proxy. Data from the target must be
// read from rest.
func tunnel(proxy, target string) (conn *net.TCPConn, rest io.Reader, err error) {
	c, err := net.DialTimeout("tcp", proxy, tunnelTimeout)
	if err != nil {
		return nil, nil, err
	}
	conn, ok := c.(*net.TCPConn)
	if !ok {
		return nil, nil, errors.Join(fmt.Errorf("%T is not a TCP connection", c), c.Close())
	}
	if rest, err = requestTunnel(conn, target); err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return conn, rest, nil
}

func requestTunnel(conn net.Conn, target string) (io.Reader, error) {
	if err := conn.SetDeadline(time.Now().Add(tunnelTimeout)); err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", target); err != nil {
		return nil, err
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // empty after a 200
	if resp.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
		return nil, fmt.Errorf("egress proxy: %s", strings.TrimSpace(string(why)))
	}
	return r, conn.SetDeadline(time.Time{})
}
