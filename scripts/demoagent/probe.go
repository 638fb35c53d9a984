package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"
)

// outcome is the result of an attempt.
type outcome string

const (
	reached     outcome = "ok"
	refused     outcome = "refused"
	unreachable outcome = "unreachable"
)

// httpOutcome classifies an HTTP status. A proxy responds with 5xx if it cannot
// reach the server.
func httpOutcome(status int) outcome {
	switch {
	case status >= 500:
		return unreachable
	case status >= 400:
		return refused
	default:
		return reached
	}
}

type result struct {
	outcome
	what, detail string
	// body is printed after the line of the result.
	body []byte
}

func (r result) print(w io.Writer) error {
	_, err := fmt.Fprintf(w, "%-11s  %-41s  %s\n", r.outcome, r.what, r.detail)
	if err == nil && len(r.body) > 0 {
		_, err = w.Write(r.body)
	}
	return err
}

const (
	// maxBody bounds the body of a page, in bytes.
	maxBody = 64 << 20
	// maxBanner bounds the bytes read from a connection.
	maxBanner = 512
	// bannerTimeout bounds the wait for a server's first bytes. Many servers
	// send none.
	bannerTimeout = time.Second
)

// proxyRefusal is a proxy's response to CONNECT, which net/http otherwise reduces
// to the status line.
type proxyRefusal struct {
	code   int
	status string
	body   []byte
}

func (e *proxyRefusal) Error() string { return "proxy response " + e.status }

func checkConnect(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBanner))
	if err != nil {
		body = fmt.Append(body, " (", err, ")")
	}
	return &proxyRefusal{code: resp.StatusCode, status: resp.Status, body: body}
}

func newClient(o options) *http.Client {
	t := &http.Transport{OnProxyConnectResponse: checkConnect, DisableKeepAlives: true}
	if !o.direct {
		t.Proxy = http.ProxyFromEnvironment
	}
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
}

// get requests the page. It does not follow redirects, which count as reached.
func get(ctx context.Context, o options, target string) result {
	r := result{outcome: unreachable, what: target}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		r.detail = err.Error()
		return r
	}
	resp, err := newClient(o).Do(req)
	var refusal *proxyRefusal
	if errors.As(err, &refusal) {
		r.outcome, r.detail, r.body = httpOutcome(refusal.code), refusal.status, refusal.body
		return r
	}
	if err != nil {
		r.detail = withoutURL(err).Error()
		return r
	}
	defer func() { _ = resp.Body.Close() }() // read only
	r.outcome, r.detail = httpOutcome(resp.StatusCode), resp.Status
	if r.body, err = io.ReadAll(io.LimitReader(resp.Body, maxBody)); err != nil {
		r.outcome, r.detail = unreachable, resp.Status+", then "+err.Error()
	}
	return r
}

// withoutURL removes method and URL from a client's error; the line names the
// URL already.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// failed classifies an error of a connection. A closed port counts as refused,
// because the host sends a response to that effect.
func (r result) failed(err error) result {
	if errors.Is(err, syscall.ECONNREFUSED) {
		r.outcome = refused
	}
	r.detail = err.Error()
	return r
}

// dial connects, sends the text and waits up to bannerTimeout for a response.
func dial(ctx context.Context, address, text string) result {
	r := result{outcome: unreachable, what: "tcp " + address}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return r.failed(err)
	}
	defer func() { _ = conn.Close() }()
	r.outcome, r.detail = reached, "connected"
	_ = conn.SetDeadline(time.Now().Add(bannerTimeout))
	if _, err := io.WriteString(conn, text); err != nil {
		r.detail = "connected, then " + err.Error()
		return r
	}
	banner := make([]byte, maxBanner)
	if n, _ := conn.Read(banner); n > 0 { // no response is not an error
		r.detail = "connected: " + printable(banner[:n])
	}
	return r
}

// udp sends the text. The destination counts as reached only if it replies.
func udp(ctx context.Context, address, text string) result {
	r := result{outcome: unreachable, what: "udp " + address}
	conn, err := new(net.Dialer).DialContext(ctx, "udp", address)
	if err != nil {
		r.detail = err.Error()
		return r
	}
	defer func() { _ = conn.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		r.detail = err.Error()
		return r
	}
	reply := make([]byte, maxBanner)
	n, err := conn.Read(reply)
	if err != nil {
		return r.failed(err)
	}
	r.outcome, r.detail = reached, "reply: "+printable(reply[:n])
	return r
}

// printable returns the text on one line, without control characters.
func printable(data []byte) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return ' '
		}
		return c
	}, strings.TrimSpace(string(data)))
}
