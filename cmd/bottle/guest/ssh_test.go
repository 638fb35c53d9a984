package guest

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// serveOnce runs a proxy for one connection. It sends the response and passes the
// tunnel to fn.
func serveOnce(t *testing.T, answer string, fn func(r io.Reader, w io.Writer)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		r := bufio.NewReader(conn)
		req, err := http.ReadRequest(r)
		if err != nil || req.Method != http.MethodConnect || req.RequestURI != "host.test:22" {
			t.Errorf("request %v, %v", req, err)
			return
		}
		_, _ = io.WriteString(conn, answer)
		fn(r, conn)
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().String()
}

// TestTunnelHalfClose checks that the host receives the end of input and that its
// answer, which it sends only then, arrives completely. The host's greeting arrives
// in the same packet as the proxy's response.
func TestTunnelHalfClose(t *testing.T) {
	const big = 1 << 20
	proxy := serveOnce(t, "HTTP/1.1 200 OK\r\n\r\ngreeting ", func(r io.Reader, w io.Writer) {
		said, err := io.ReadAll(r)
		if string(said) != "question" || err != nil {
			t.Errorf("the host received %q, %v", said, err)
		}
		_, _ = io.WriteString(w, strings.Repeat("a", big))
	})
	conn, rest, err := tunnel(proxy, "host.test:22")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	var out strings.Builder
	if err := join(conn, rest, strings.NewReader("question"), &out); err != nil || out.String() != "greeting "+strings.Repeat("a", big) {
		t.Errorf("%d bytes, %v", out.Len(), err)
	}
}

// TestTunnelEndedByHost checks that the tunnel ends with the host even if the input
// never ends.
func TestTunnelEndedByHost(t *testing.T) {
	proxy := serveOnce(t, "HTTP/1.1 200 OK\r\n\r\n", func(io.Reader, io.Writer) {})
	conn, rest, err := tunnel(proxy, "host.test:22")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	in, end := io.Pipe()
	defer func() { _ = end.Close() }()
	if err := join(conn, rest, in, io.Discard); err != nil {
		t.Error(err)
	}
}

func TestTunnelRefused(t *testing.T) {
	proxy := serveOnce(t, "HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\nnot here\n", func(io.Reader, io.Writer) {})
	_, _, err := tunnel(proxy, "host.test:22")
	if err == nil || err.Error() != "egress proxy: not here" {
		t.Errorf("got %v", err)
	}
	if _, _, err := tunnel("http://127.0.0.1:1", "host.test:22"); err == nil {
		t.Error("no error without a proxy")
	}
}
