package egress

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/egress/inject"
	secrets "github.com/bot-bottle/bottle/internal/secret"
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

// BenchmarkUntouched sends 64 kB to and fro through two tunnels to a host without secrets,
// in turns: of a proxy that has secrets for another host, and of one that has none. It
// reports the ratio of their speeds.
func BenchmarkUntouched(b *testing.B) {
	files := writeInjectFiles(b, []inject.Secret{{
		Name: "X", Value: secrets.New(injectValue), Placeholder: inject.Placeholder(injectValue), Hosts: []string{"other.example.com"},
	}})
	echo := func(c *net.TCPConn) { _, _ = io.Copy(c, c) }
	plain := dialThroughProxy(b, serveBench(b, echo))
	beside := dialWith(b, serveBench(b, echo), files)
	var times [2][]time.Duration
	buf := make([]byte, 64<<10)
	for b.Loop() {
		for i, c := range []*net.TCPConn{plain, beside} {
			began := time.Now()
			if _, err := c.Write(buf); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Fatal(err)
			}
			times[i] = append(times[i], time.Since(began))
		}
	}
	for _, c := range []*net.TCPConn{plain, beside} {
		_ = c.Close()
	}
	slices.Sort(times[0])
	slices.Sort(times[1])
	b.ReportMetric(float64(times[0][len(times[0])/2])/float64(times[1][len(times[1])/2]), "ratio")
}

func dialThroughProxy(b *testing.B, port int) *net.TCPConn { return dialWith(b, port, nil) }

func dialWith(b *testing.B, port int, files *Inject) *net.TCPConn {
	s, err := New(testConfig(Config{Entries: Entries{SSH: []string{fmt.Sprintf("example.com:%d", port)}}, Inject: files}), io.Discard)
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

// writeInjectFiles writes the files of a proxy with secrets.
func writeInjectFiles(b *testing.B, list []inject.Secret) *Inject {
	b.Helper()
	hosts, err := inject.Hosts(list, nil)
	if err != nil {
		b.Fatal(err)
	}
	ca, err := inject.NewCA(hosts)
	if err != nil {
		b.Fatal(err)
	}
	data, err := inject.Encode(ca, list)
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	files := &Inject{Secrets: filepath.Join(dir, "secrets.json"), Roots: filepath.Join(dir, "roots.pem")}
	for name, data := range map[string][]byte{files.Secrets: data, files.Roots: ca.CertPEM()} {
		if err := os.WriteFile(name, data, 0o400); err != nil {
			b.Fatal(err)
		}
	}
	return files
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
