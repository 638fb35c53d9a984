package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// tryRaw writes its bytes to the proxy as they are. Each answer's status is in
// the detail; it got through if the last is no refusal. An argument beyond the
// first is written after the answer to the one before it.
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
		// Pipelined requests have an answer each.
		for range max(1, strings.Count(text, "HTTP/1.1\r\n")) {
			answer, err := http.ReadResponse(in, nil)
			if err != nil {
				return strings.Join(seen, " "), fmt.Errorf("no answer: %w", err)
			}
			if !strings.HasPrefix(text, "CONNECT") {
				_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, 1<<16))
				_ = answer.Body.Close() // read
			}
			last = answer.StatusCode
			seen = append(seen, answer.Status)
		}
	}
	if last >= 400 {
		return strings.Join(seen, " "), fmt.Errorf("refused")
	}
	return strings.Join(seen, " "), nil
}

func dialProxy(ctx context.Context, proxy string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", proxy)
	if err != nil {
		return nil, err
	}
	return conn, conn.SetDeadline(time.Now().Add(limit))
}

// splitConn sends what is written in two parts, so that a ClientHello comes in
// two segments.
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
	time.Sleep(20 * time.Millisecond) // for the segments to be two
	m, err := c.Conn.Write(p[c.at:])
	c.at = 0
	return n + m, err
}

// tryTLS connects to one host by the proxy and names another in the handshake:
// args are host:port, the name (may be empty), whether the hello is "split", and
// a path that is asked for.
func tryTLS(ctx context.Context, proxy string, args []string) (string, error) {
	conn, err := dialProxy(ctx, proxy)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", args[0]); err != nil {
		return "", err
	}
	answer, err := http.ReadResponse(bufio.NewReader(io.LimitReader(byteReader{conn}, 4096)), &http.Request{Method: http.MethodConnect})
	if err != nil {
		return "", err
	}
	defer func() { _ = answer.Body.Close() }() // the tunnel, as far as Go knows
	if answer.StatusCode != http.StatusOK {
		return answer.Status, fmt.Errorf("refused")
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
	return "answered", err
}

// byteReader hands out one byte at a time, so that no buffer keeps what follows
// the proxy's answer.
type byteReader struct{ r io.Reader }

func (b byteReader) Read(p []byte) (int, error) { return b.r.Read(p[:min(1, len(p))]) }

// tryFollow gets a URL by the proxy, redirects followed. It got through with an
// answer from the last.
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
		return res.Status, fmt.Errorf("refused")
	}
	return res.Status, nil
}

// tryFlip connects several times to a name whose address changes. Where it came
// is for the victim to say: one of the addresses is allowed.
func tryFlip(ctx context.Context, proxy string, args []string) (string, error) {
	var details []string
	for range 4 {
		detail, _ := tryRaw(ctx, proxy, args) // which of them was refused does not matter
		details = append(details, detail)
	}
	return strings.Join(details, ", "), nil
}
