package egress

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// tlsServer is a TLS server for example.com and the names below it.
func tlsServer(t *testing.T) (*httptest.Server, int) {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "hello from "+r.Host)
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // the tests abort handshakes
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv, portOf(srv.Listener.Addr().String())
}

func TestTLSThroughTunnel(t *testing.T) {
	srv, port := tlsServer(t)
	p := startProxy(t, Config{Entries: Entries{Allow: []string{fmt.Sprintf("*.example.com:%d", port)}}})
	res, err := p.client(t, srv).Get(fmt.Sprintf("https://a.example.com:%d/", port))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if want := fmt.Sprintf("hello from a.example.com:%d", port); err != nil || string(body) != want {
		t.Errorf("%q, %v; want %q", body, err, want)
	}
}

func TestSNI(t *testing.T) {
	srv, port := tlsServer(t)
	pool := x509.NewCertPool()
	pool.AddCert(srv.Certificate())
	for _, tc := range []struct {
		name    string
		entries Entries
		host    string
		sni     string
		ok      bool
	}{
		{"same name", Entries{Allow: []string{"a.example.com:%d"}}, "a.example.com", "a.example.com", true},
		{"same name, other case", Entries{Allow: []string{"a.example.com:%d"}}, "A.EXAMPLE.com.", "a.Example.com", true},
		{"other name", Entries{Allow: []string{"a.example.com:%d"}}, "a.example.com", "other.example.com", false},
		{"other allowed name", Entries{Allow: []string{"*.example.com:%d"}}, "a.example.com", "other.example.com", false},
		{"parent name", Entries{Allow: []string{"a.example.com:%d"}}, "a.example.com", "example.com", false},
		{"no name", Entries{Allow: []string{"a.example.com:%d"}}, "a.example.com", "", false},
		{"address without name", Entries{Allow: []string{"127.0.0.1:%d"}}, "127.0.0.1", "", true},
		{"address with name", Entries{Allow: []string{"127.0.0.1:%d"}}, "127.0.0.1", "a.example.com", false},
		{"ssh entry, same name", Entries{SSH: []string{"a.example.com:%d"}}, "a.example.com", "a.example.com", true},
		{"ssh entry, other name", Entries{SSH: []string{"a.example.com:%d"}}, "a.example.com", "other.example.com", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, list := range [][]string{tc.entries.Allow, tc.entries.SSH} {
				for i := range list {
					list[i] = fmt.Sprintf(list[i], port)
				}
			}
			p := startProxy(t, Config{Entries: tc.entries})
			s := p.connect(t, fmt.Sprintf("%s:%d", tc.host, port))
			conn := tls.Client(s, &tls.Config{
				ServerName: tc.sni, RootCAs: pool,
				InsecureSkipVerify: tc.sni == "", // crypto/tls wants one or the other
			})
			err := conn.Handshake()
			if tc.ok != (err == nil) {
				t.Errorf("handshake: %v, want ok: %v", err, tc.ok)
			}
			if tc.ok {
				return
			}
			e := p.log.waitEvent(t, EventSNIMismatch)
			if e.SNI != strings.ToLower(tc.sni) || !e.Denied() {
				t.Errorf("logged %+v", e)
			}
		})
	}
}

// A handshake is recognized when it arrives in single bytes and small records.
func TestSNIInPieces(t *testing.T) {
	_, port := tlsServer(t)
	p := startProxy(t, Config{Entries: Entries{Allow: []string{fmt.Sprintf("a.example.com:%d", port)}}})
	for name, ok := range map[string]bool{"a.example.com": true, "other.example.com": false} {
		s := p.connect(t, fmt.Sprintf("a.example.com:%d", port))
		for _, b := range splitRecords(hello(t, name), 7) {
			if _, err := s.Write([]byte{b}); err != nil {
				break // refused early
			}
		}
		answer := make([]byte, 1)
		n, err := s.Read(answer)
		if ok && (n != 1 || answer[0] != recordHandshake) {
			t.Errorf("%s: %x, %v; want the server's handshake", name, answer[:n], err)
		}
		if !ok && n != 0 {
			t.Errorf("%s: %x, want nothing", name, answer[:n])
		}
	}
}

// hello returns the first flight of a TLS client, in one record.
func hello(t testing.TB, name string) []byte {
	t.Helper()
	var sent bytes.Buffer
	conn := &recordingConn{helloConn: helloConn{r: strings.NewReader("")}, w: &sent}
	if err := tls.Client(conn, &tls.Config{ServerName: name}).Handshake(); err == nil {
		t.Fatal("a handshake without a server succeeded")
	}
	return sent.Bytes()
}

type recordingConn struct {
	helloConn
	w io.Writer
}

func (c *recordingConn) Write(p []byte) (int, error) { return c.w.Write(p) }

// splitRecords splits the single TLS record in data into records of size bytes.
func splitRecords(data []byte, size int) []byte {
	head, body := data[:3], data[5:5+int(data[3])<<8+int(data[4])]
	var out []byte
	for len(body) > 0 {
		n := min(size, len(body))
		out = append(out, head...)
		out = append(out, byte(n>>8), byte(n))
		out = append(out, body[:n]...)
		body = body[n:]
	}
	return out
}

// Streams that are not TLS are allowed for ssh entries only.
func TestNotTLS(t *testing.T) {
	port := serveTCP(t, echo)
	p := startProxy(t, Config{
		HeaderTimeout: Duration(300 * time.Millisecond),
		Entries: Entries{
			Allow: []string{fmt.Sprintf("a.example.com:%d", port)},
			SSH:   []string{fmt.Sprintf("git.example.com:%d", port)},
		},
	})
	p.connect(t, fmt.Sprintf("git.example.com:%d", port)).roundTrip(t, "SSH-2.0-test\r\n")
	for _, first := range []string{
		"SSH-2.0-test\r\n", "EHLO client.example\r\n", "GET http://other/ HTTP/1.1\r\n\r\n", "GET", "x",
		"\x80\x2e\x01\x00\x02", // SSL 2
		"\x16GET / HTTP/1.1\r\n\r\n",
		"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", // a ClientHello of one byte
		"\x16\x03\x01\x40\x01" + strings.Repeat("x", 0x4001),
		"\x16\x03\x01",
		"\x15\x03\x01\x00\x02\x01\x00",
	} {
		s := p.connect(t, fmt.Sprintf("a.example.com:%d", port))
		if _, err := io.WriteString(s, first); err != nil {
			t.Fatal(err)
		}
		if got, _ := io.ReadAll(s); len(got) > 0 {
			t.Errorf("%.20q was answered with %q", first, got)
		}
	}
	p.log.wait(t, "refusal", func(e Entry) bool { return e.Event == EventBlocked && e.Scanner == "sni" })
}

// A tunnel whose client sends nothing is closed after the header timeout; data
// from the server does not reach the client before.
func TestSilentTunnel(t *testing.T) {
	port := serveTCP(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "banner")
		_, _ = io.Copy(io.Discard, c)
	})
	p := startProxy(t, Config{HeaderTimeout: Duration(50 * time.Millisecond), Entries: Entries{Allow: []string{fmt.Sprintf("a.example.com:%d", port)}}})
	got, err := io.ReadAll(p.connect(t, fmt.Sprintf("a.example.com:%d", port)))
	if err != nil || len(got) > 0 {
		t.Errorf("%q, %v; want nothing", got, err)
	}
	e := p.log.waitEvent(t, EventError)
	if !strings.Contains(e.Reason, "wait for first bytes from client") {
		t.Errorf("logged %+v", e)
	}
}
