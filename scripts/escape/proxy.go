package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// tryRaw sends each argument to the proxy unchanged and waits for the responses
// before it sends the next. The detail lists the status of every response. It
// succeeds if the last response is not an error.
func tryRaw(ctx context.Context, proxy string, args []string) (string, error) {
	conn, err := dialProxy(ctx, proxy)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	in := bufio.NewReader(conn)
	var seen []string
	last := 0
	for _, text := range args {
		if _, err := io.WriteString(conn, text); err != nil {
			return strings.Join(seen, " "), err
		}
		// An argument may contain pipelined requests.
		for range max(1, strings.Count(text, "HTTP/1.1\r\n")) {
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				return strings.Join(seen, " "), fmt.Errorf("no response: %w", err)
			}
			if !strings.HasPrefix(text, "CONNECT") {
				_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16))
				_ = resp.Body.Close() // already read
			}
			last = resp.StatusCode
			seen = append(seen, resp.Status)
		}
	}
	if last >= 400 {
		return strings.Join(seen, " "), errRefused
	}
	return strings.Join(seen, " "), nil
}

var errRefused = errors.New("refused")

func dialProxy(ctx context.Context, proxy string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", proxy)
	if err != nil {
		return nil, err
	}
	return conn, conn.SetDeadline(time.Now().Add(timeout))
}

// splitConn sends the first write in two parts, so that a ClientHello is sent in
// two TCP segments.
type splitConn struct {
	net.Conn
	at int
}

func (c *splitConn) Write(p []byte) (int, error) {
	if c.at == 0 || len(p) <= c.at {
		return c.Conn.Write(p)
	}
	n, err := c.Conn.Write(p[:c.at])
	if err != nil {
		return n, err
	}
	time.Sleep(20 * time.Millisecond) // so that the kernel does not merge the segments
	m, err := c.Conn.Write(p[c.at:])
	c.at = 0
	return n + m, err
}

// tryTLS connects to a host through the proxy, names another one in the TLS
// handshake and requests a path. The arguments are host:port, the server name
// (which may be empty), "split" to split the ClientHello, and the path.
func tryTLS(ctx context.Context, proxy string, args []string) (string, error) {
	conn, err := dialProxy(ctx, proxy)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", args[0]); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(io.LimitReader(byteReader{conn}, 4096)), &http.Request{Method: http.MethodConnect})
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }() // for Go, the body is the tunnel
	if resp.StatusCode != http.StatusOK {
		return resp.Status, errRefused
	}
	wire := &splitConn{Conn: conn}
	if args[2] == "split" {
		wire.at = 9
	}
	secure := tls.Client(wire, &tls.Config{ServerName: args[1], InsecureSkipVerify: true})
	if err := secure.HandshakeContext(ctx); err != nil {
		return "connected", fmt.Errorf("handshake: %w", err)
	}
	if _, err := fmt.Fprintf(secure, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", args[3], args[1]); err != nil {
		return "connected", err
	}
	_, err = io.ReadAll(io.LimitReader(secure, 4096))
	return "response received", err
}

// byteReader returns one byte per read, so that a bufio.Reader does not read
// beyond the proxy's response.
type byteReader struct{ r io.Reader }

func (b byteReader) Read(p []byte) (int, error) { return b.r.Read(p[:min(1, len(p))]) }

// tryFollow requests a URL through the proxy and follows redirects. It succeeds
// if the last response is not a refusal.
func tryFollow(ctx context.Context, proxy string, args []string) (string, error) {
	client := &http.Client{Transport: &http.Transport{
		Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: proxy}), DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, args[0], nil)
	if err != nil {
		return "", err
	}
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = res.Body.Close() }()
	body, _ := io.ReadAll(io.LimitReader(res.Body, 256))
	if res.StatusCode == http.StatusForbidden || bytes.HasPrefix(body, []byte("blocked")) {
		return res.Status, errRefused
	}
	return res.Status, nil
}

// tryFlip connects several times to a name whose address changes. It always
// succeeds, because one of the addresses is allowed; the victim sees the others.
func tryFlip(ctx context.Context, proxy string, args []string) (string, error) {
	var details []string
	for range 4 {
		detail, _ := tryRaw(ctx, proxy, args) // some of them are refused
		details = append(details, detail)
	}
	return strings.Join(details, ", "), nil
}
