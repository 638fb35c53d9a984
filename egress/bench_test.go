package egress

import (
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
)

// BenchmarkThroughput sends through one tunnel and through a plain TCP relay,
// and reports the ratio of the two as tunnel/bare.
func BenchmarkThroughput(b *testing.B) {
	var bare float64
	b.Run("bare", func(b *testing.B) { bare = throughput(b, dialBareRelay) })
	b.Run("tunnel", func(b *testing.B) {
		tunnel := throughput(b, dialThroughProxy)
		if bare > 0 {
			b.ReportMetric(tunnel/bare, "tunnel/bare")
		}
	})
}

// throughput returns the bytes per second from a client, through the connection
// that dial returns, until a server has read them.
func throughput(b *testing.B, dial func(b *testing.B, port int) *net.TCPConn) float64 {
	const chunk = 1 << 20
	read := make(chan struct{})
	port := serveBench(b, func(c *net.TCPConn) {
		_, _ = io.Copy(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c})
		close(read)
	})
	c := dial(b, port)
	buf := make([]byte, chunk)
	b.SetBytes(chunk)
	b.ResetTimer()
	for range b.N {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	if err := c.CloseWrite(); err != nil {
		b.Fatal(err)
	}
	<-read
	return float64(b.N) * chunk / b.Elapsed().Seconds()
}

func dialBareRelay(b *testing.B, port int) *net.TCPConn {
	relay := serveBench(b, func(c *net.TCPConn) {
		up, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			b.Error(err)
			return
		}
		_, _ = up.(*net.TCPConn).ReadFrom(c)
		_ = up.Close()
	})
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", relay))
	if err != nil {
		b.Fatal(err)
	}
	return c.(*net.TCPConn)
}

func dialThroughProxy(b *testing.B, port int) *net.TCPConn {
	s, err := New(testConfig(Config{Entries: Entries{SSH: []string{fmt.Sprintf("example.com:%d", port)}}}), io.Discard)
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(b.Context(), l) })
	b.Cleanup(wg.Wait)
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	if _, err := fmt.Fprintf(c, "CONNECT example.com:%d HTTP/1.1\r\nHost: x\r\n\r\n", port); err != nil {
		b.Fatal(err)
	}
	const ok = "HTTP/1.1 200 Connection established\r\n\r\n"
	if _, err := io.ReadFull(c, make([]byte, len(ok))); err != nil {
		b.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// serveBench is serveTCP for one connection.
func serveBench(b *testing.B, handle func(*net.TCPConn)) (port int) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		handle(c.(*net.TCPConn))
		_ = c.Close()
	})
	b.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return portOf(l.Addr().String())
}
