package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/websocket"
)

// noise returns an endless reproducible stream of bytes.
func noise() io.Reader { return rand.NewChaCha8([32]byte{7}) }

// large is the size of a large body, in bytes.
const large = 8 << 20

// tunnel is an open CONNECT tunnel. Its reader also returns bytes that arrived
// together with the response.
type tunnel struct {
	*net.TCPConn
	io.Reader
}

func (t tunnel) Read(p []byte) (int, error) { return t.Reader.Read(p) }

// inTunnel opens a tunnel and runs talk in it; an error of talk means that the
// tunnel did not work.
func inTunnel(name, target, want string, talk func(t tunnel) error) request {
	return request{name: name, want: want, converse: func(addr string) string {
		c, err := dial(addr)
		if err != nil {
			return err.Error()
		}
		defer func() { _ = c.Close() }()
		_, err = fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", target)
		if err != nil {
			return failure(err)
		}
		br := bufio.NewReader(c)
		res, err := http.ReadResponse(br, &http.Request{Method: http.MethodConnect})
		if err != nil {
			return failure(err)
		}
		defer func() { _ = res.Body.Close() }()
		if res.StatusCode != http.StatusOK {
			return verdict(res)
		}
		if err := talk(tunnel{c, br}); err != nil {
			return failure(err)
		}
		return allowed
	}}
}

// inHTTP is inTunnel with a request in plain HTTP, in a tunnel to port 80.
func inHTTP(name, text, want string) request {
	return inTunnel(name, "api.verdict.test:80", want, func(t tunnel) error {
		if _, err := io.WriteString(t, text); err != nil {
			return err
		}
		res, err := http.ReadResponse(bufio.NewReader(t), nil)
		if err != nil {
			return err
		}
		defer func() { _ = res.Body.Close() }()
		if got := verdict(res); got != allowed && res.StatusCode != http.StatusSwitchingProtocols {
			return refusedError(got)
		}
		return nil
	})
}

// refusedError is the verdict of a response inside a tunnel.
type refusedError string

func (e refusedError) Error() string { return string(e) }

// inTLS is inTunnel with a TLS handshake for sni.
func inTLS(name, target, sni, want string, talk func(c *tls.Conn) error) request {
	return inTunnel(name, target, want, func(t tunnel) error {
		c := tls.Client(t, &tls.Config{ServerName: sni, InsecureSkipVerify: true}) //nolint:gosec // the server's identity does not matter here
		if err := c.Handshake(); err != nil {
			return err
		}
		return talk(c)
	})
}

// mismatch is an unexpected result; err is nil if nothing else failed.
func mismatch(err error, format string, args ...any) error {
	if err == nil {
		return fmt.Errorf(format, args...)
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}

// Targets of the conversations.
var (
	hostTLS     = "tls.verdict.test"
	targetTLS   = fmt.Sprintf("%s:%d", hostTLS, portTLS)
	targetTLSHC = fmt.Sprintf("%s:%d", hostTLS, portTLSHalf)
	targetHalf  = fmt.Sprintf("raw.verdict.test:%d", portHalf)
	targetEnds  = fmt.Sprintf("raw.verdict.test:%d", portEnds)
	targetRaw   = fmt.Sprintf("raw.verdict.test:%d", portWeb)
)

// wsOpen opens a websocket on a connection.
func wsOpen(c io.ReadWriteCloser, path string) (*websocket.Conn, error) {
	config, err := websocket.NewConfig("wss://"+hostTLS+path, "https://"+hostTLS)
	if err != nil {
		return nil, err
	}
	return websocket.NewClient(config, c)
}

// wsEcho sends messages and expects each of them back.
func wsEcho(c io.ReadWriteCloser, messages, length int, pause time.Duration) error {
	ws, err := wsOpen(c, "/ws")
	if err != nil {
		return err
	}
	sent := make([]byte, length)
	_, _ = noise().Read(sent)
	for range messages {
		if err := websocket.Message.Send(ws, sent); err != nil {
			return err
		}
		// The server may split a message.
		got := make([]byte, length)
		if _, err := io.ReadFull(ws, got); err != nil {
			return err
		}
		if !bytes.Equal(sent, got) {
			return fmt.Errorf("a message of %d bytes was echoed with different content", length)
		}
		time.Sleep(pause)
	}
	return ws.Close()
}

// websockets tests them in tunnels and, where they are refused, without.
func websockets() []request {
	echo := func(messages, length int, pause time.Duration) func(*tls.Conn) error {
		return func(c *tls.Conn) error { return wsEcho(c, messages, length, pause) }
	}
	upgrade := func(name, url string, headers ...string) request {
		return get(url, "refused 403", append(headers, "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")...).named("websocket: " + name)
	}
	return []request{
		inTLS("websocket: over TLS", targetTLS, hostTLS, allowed, echo(3, 40, 0)),
		inTLS("websocket: with pauses", targetTLS, hostTLS, allowed, echo(5, 4, pauseTime)),
		inTLS("websocket: a large message", targetTLS, hostTLS, allowed, echo(1, 1<<20, 0)),
		inTLS("websocket: the server sends first and closes", targetTLS, hostTLS, allowed, wsPushed),
		inTLS("websocket: for another host", targetTLS, "other.verdict.test", closed, echo(1, 4, 0)),
		inTLS("websocket: to a refused host", "other.verdict.test:443", "other.verdict.test", "refused 403", echo(1, 4, 0)),
		inTLS("websocket: to a port that the entry does not allow", fmt.Sprintf("api.verdict.test:%d", portTLS), "api.verdict.test", "refused 403", echo(1, 4, 0)),
		inHTTP("websocket: without TLS, in a tunnel to 80", "GET /ws HTTP/1.1\r\nHost: api.verdict.test\r\n"+
			"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", "refused 403"),
		inTunnel("websocket: without TLS, on an ssh entry's port", targetRaw, allowed, func(t tunnel) error { return wsEcho(t, 3, 40, 0) }),
		upgrade("plain HTTP", "http://api.verdict.test/ws", "Connection: Upgrade", "Upgrade: websocket"),
		upgrade("plain HTTP, in capitals", "http://api.verdict.test/ws", "Connection: UPGRADE", "Upgrade: WEBSOCKET"),
		upgrade("plain HTTP, among others", "http://api.verdict.test/ws", "Connection: keep-alive, Upgrade", "Upgrade: websocket"),
		upgrade("plain HTTP, without Connection", "http://api.verdict.test/ws", "Upgrade: websocket"),
		upgrade("plain HTTP, to a refused host", "http://other.verdict.test/ws", "Connection: Upgrade", "Upgrade: websocket"),
		upgrade("a URL of ws", "ws://api.verdict.test/ws", "Connection: Upgrade", "Upgrade: websocket"),
		get("http://api.verdict.test/plain", allowed, "Connection: Upgrade", "Upgrade: h2c, websocket").named("an upgrade to one of two: no upgrade"),
		get("http://api.verdict.test/plain", allowed, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__").named("an upgrade to HTTP/2: no upgrade"),
	}
}

func wsPushed(c *tls.Conn) error {
	ws, err := wsOpen(c, "/push")
	if err != nil {
		return err
	}
	for range pushes {
		var got string
		if err := websocket.Message.Receive(ws, &got); err != nil || got != mark {
			return mismatch(err, "unexpected message %q", got)
		}
	}
	if n, err := ws.Read(make([]byte, 1)); n > 0 || err != io.EOF { //nolint:errorlint // io.Reader returns io.EOF itself
		return mismatch(err, "%d bytes after the last message", n)
	}
	return nil
}

// halves tests whether one direction can be closed before the other.
func halves() []request {
	counted := func(c io.Reader, n int64) error {
		got, err := io.ReadAll(c)
		if want := fmt.Sprint(n, " <nil>"); err != nil || string(got) != want {
			return mismatch(err, "the server counted %q, not %q", got, want)
		}
		return nil
	}
	return []request{
		inTunnel("half-close: by the client, then the answer", targetHalf, allowed, func(t tunnel) error {
			_, err := io.CopyN(t, noise(), 5)
			if err == nil {
				err = t.CloseWrite()
			}
			if err != nil {
				return err
			}
			return counted(t, 5)
		}),
		inTunnel("half-close: by the client, without a byte", targetHalf, allowed, func(t tunnel) error {
			if err := t.CloseWrite(); err != nil {
				return err
			}
			return counted(t, 0)
		}),
		inTunnel("half-close: by the client, after a large body", targetHalf, allowed, func(t tunnel) error {
			_, err := io.CopyN(t, noise(), large)
			if err == nil {
				err = t.CloseWrite()
			}
			if err != nil {
				return err
			}
			return counted(t, large)
		}),
		inTunnel("half-close: by the server, the client continues", targetEnds, allowed, func(t tunnel) error {
			for len(heard) > 0 {
				<-heard // left by a proxy whose conversation failed
			}
			if got, err := io.ReadAll(t); err != nil || string(got) != mark {
				return mismatch(err, "unexpected data %q before the half-close", got)
			}
			_, err := io.WriteString(t, "still here")
			if err == nil {
				err = t.CloseWrite()
			}
			if err != nil {
				return err
			}
			select {
			case got := <-heard:
				if got != "still here <nil>" {
					return fmt.Errorf("the server received %q after its half-close", got)
				}
				return nil
			case <-time.After(timeout):
				return fmt.Errorf("the server received nothing after its half-close")
			}
		}),
		inTLS("half-close: of TLS only", targetTLSHC, hostTLS, allowed, func(c *tls.Conn) error {
			_, err := io.CopyN(c, noise(), 1000)
			if err == nil {
				err = c.CloseWrite()
			}
			if err != nil {
				return err
			}
			return counted(c, 1000)
		}),
		inTunnel("half-close: in the middle of a handshake", "api.verdict.test:443", closed, func(t tunnel) error {
			_, err := t.Write(hello("api.verdict.test")[:100])
			if err == nil {
				err = t.CloseWrite()
			}
			if err != nil {
				return err
			}
			_, err = io.ReadFull(t, make([]byte, len(mark)))
			return err
		}),
	}
}

// plainBody is a plain request with a streamed body; check reads the response.
func plainBody(name, method, url string, body func() io.Reader, length int64, check func(io.Reader) error) request {
	return request{name: name, want: allowed, converse: func(addr string) string {
		c, err := dial(addr)
		if err != nil {
			return err.Error()
		}
		defer func() { _ = c.Close() }()
		// A body of its own for each proxy: the first one reads it to the end.
		return exchange(c, bufio.NewReader(c), method, url, body(), length, check)
	}}
}

// exchange sends a request on a connection. A length of -1 is sent in chunks.
func exchange(c io.Writer, br *bufio.Reader, method, target string, body io.Reader, length int64, check func(io.Reader) error) string {
	req, err := http.NewRequest(method, target, body)
	if err != nil {
		return err.Error()
	}
	req.ContentLength, req.Close = length, true
	wrote := make(chan error, 1)
	go func() { wrote <- req.WriteProxy(c) }() // the response may begin before the body ends
	res, err := http.ReadResponse(br, req)
	if err != nil {
		return failure(err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return fmt.Sprintf("refused %d", res.StatusCode)
	}
	if err := check(res.Body); err != nil {
		return err.Error()
	}
	if err := <-wrote; err != nil {
		return err.Error()
	}
	return allowed
}

// same expects a large body of noise.
func same(r io.Reader) error {
	got, err := io.ReadAll(r)
	want := make([]byte, large)
	_, _ = io.ReadFull(noise(), want)
	if err != nil || !bytes.Equal(got, want) {
		return mismatch(err, "received %d of %d bytes, equal: %v", len(got), large, bytes.Equal(got, want))
	}
	return nil
}

// says expects a text.
func says(want string) func(io.Reader) error {
	return func(r io.Reader) error {
		got, err := io.ReadAll(r)
		if err != nil || string(got) != want {
			return mismatch(err, "received %.40q, want %q", got, want)
		}
		return nil
	}
}

// slowly is a reader that returns one byte at a time.
type slowly struct{ left string }

func (s *slowly) Read(p []byte) (int, error) {
	if s.left == "" {
		return 0, io.EOF
	}
	time.Sleep(pauseTime)
	n := copy(p[:1], s.left)
	s.left = s.left[n:]
	return n, nil
}

// bodies tests large and slow ones, with and without a tunnel.
func bodies() []request {
	const api = "http://api.verdict.test"
	inside := func(name, method, path string, body func() io.Reader, length int64, check func(io.Reader) error) request {
		return inTLS(name, targetTLS, hostTLS, allowed, func(c *tls.Conn) error {
			if got := exchange(c, bufio.NewReader(c), method, "https://"+targetTLS+path, body(), length, check); got != allowed {
				return fmt.Errorf("in the tunnel: %s", got)
			}
			return nil
		})
	}
	lots := func() io.Reader { return io.LimitReader(noise(), large) }
	drip := func() io.Reader { return &slowly{"a slow body"} }
	none := func() io.Reader { return http.NoBody }
	head := get(api+"/", allowed).named("a slow header")
	for _, b := range []byte(head.text[10:]) {
		head.pieces = append(head.pieces, string(b))
	}
	head.text = head.text[:10]
	never := get(api+"/", closed).named("a header without an end")
	never.text = strings.TrimSuffix(never.text, "\r\n")
	return []request{
		plainBody("a large body", http.MethodPost, api+"/count", lots, large, says(fmt.Sprint(large, " <nil>"))),
		plainBody("a large body, in chunks", http.MethodPost, api+"/count", lots, -1, says(fmt.Sprint(large, " <nil>"))),
		plainBody("a large body, and back", http.MethodPost, api+"/echo", lots, large, same),
		plainBody("a large answer", http.MethodGet, fmt.Sprintf("%s/bytes?n=%d", api, large), none, 0, same),
		plainBody("a slow body", http.MethodPost, api+"/echo", drip, 11, says("a slow body")),
		plainBody("a slow body, in chunks", http.MethodPut, api+"/echo", drip, -1, says("a slow body")),
		plainBody("a slow answer", http.MethodGet, api+"/slow", none, 0, says(mark)),
		head, never,
		inside("in a tunnel: a large body", http.MethodPost, "/count", lots, large, says(fmt.Sprint(large, " <nil>"))),
		inside("in a tunnel: a large body, and back", http.MethodPost, "/echo", lots, -1, same),
		inside("in a tunnel: a large answer", http.MethodGet, fmt.Sprintf("/bytes?n=%d", large), none, 0, same),
		inside("in a tunnel: a slow body", http.MethodPost, "/echo", drip, 11, says("a slow body")),
		inside("in a tunnel: a slow answer", http.MethodGet, "/slow", none, 0, says(mark)),
	}
}

// redirected sends a plain request that is redirected and follows the redirect
// like a client; the verdict is that of the second request.
func redirected(to string, code int, want string) request {
	return request{name: fmt.Sprintf("redirect %d to %s", code, to), want: want, converse: func(addr string) string {
		c, err := dial(addr)
		if err != nil {
			return err.Error()
		}
		defer func() { _ = c.Close() }()
		_, err = fmt.Fprintf(c, "GET http://api.verdict.test/redirect?code=%d&to=%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", code, url.QueryEscape(to))
		if err != nil {
			return failure(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: http.MethodGet})
		if err != nil {
			return failure(err)
		}
		_ = res.Body.Close()
		u, err := url.Parse(res.Header.Get("Location"))
		if res.StatusCode != code || err != nil {
			return fmt.Sprintf("not redirected: %d to %v", res.StatusCode, u)
		}
		u = (&url.URL{Scheme: "http", Host: "api.verdict.test", Path: "/redirect"}).ResolveReference(u)
		if u.Scheme == "https" {
			return connect(u.Host+":443", u.Hostname(), "").send(addr)
		}
		return get(u.String(), "").send(addr)
	}}
}

// redirects tests whether an allowed server can redirect a client to a refused
// destination.
func redirects() (out []request) {
	for _, code := range []int{301, 302, 303, 307, 308} {
		out = append(out, redirected("http://other.verdict.test/", code, "refused 403"))
	}
	for _, r := range []struct{ to, want string }{
		{"/", allowed}, {"http://a.wild.verdict.test/", allowed}, {"http://API.verdict.test:80/", allowed}, {"https://api.verdict.test", allowed},
		{"https://other.verdict.test", "refused 403"}, {"http://api.verdict.test:8443/", "refused 403"}, {"http://inside.verdict.test/", "refused 403"},
		{"http://169.254.169.254/latest/meta-data/", "refused 403"}, {"http://127.0.0.1/", "refused 403"}, {"ftp://api.verdict.test/", "refused 403"},
		{"http://evilapi.verdict.test/", "refused 403"}, {"http://[::1]/", "refused 403"}, {"http://2130706433/", "refused 400"},
		{"http://api.verdict.test@other.verdict.test/", "refused 400"},
	} {
		out = append(out, redirected(r.to, 302, r.want))
	}
	return out
}
