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

// outcome is how an attempt ended.
type outcome string

const (
	reached     outcome = "ok"
	refused     outcome = "refused"
	unreachable outcome = "unreachable"
)

// of sorts an HTTP status: a proxy says by 5xx that it got no answer itself.
func of(status int) outcome {
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
	// body is printed after the line.
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
	// maxBody bounds what is kept of a page, in bytes.
	maxBody = 64 << 20
	// maxBanner bounds what is read of a connection.
	maxBanner = 512
	// bannerWait is how long a server that has accepted may take to say
	// something; many never do.
	bannerWait = time.Second
)

// proxyRefusal is a proxy's answer to CONNECT, which net/http otherwise reduces
// to its status line.
type proxyRefusal struct {
	code   int
	status string
	body   []byte
}

func (e *proxyRefusal) Error() string { return "the proxy answered " + e.status }

func checkConnect(_ context.Context, _ *url.URL, _ *http.Request, answer *http.Response) error {
	if answer.StatusCode == http.StatusOK {
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxBanner))
	if err != nil {
		body = fmt.Append(body, " (", err, ")")
	}
	return &proxyRefusal{code: answer.StatusCode, status: answer.Status, body: body}
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

// get asks for the page. A redirect is not followed, and counts as reached.
func get(ctx context.Context, o options, target string) result {
	r := result{outcome: unreachable, what: target}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		r.detail = err.Error()
		return r
	}
	answer, err := newClient(o).Do(req)
	var no *proxyRefusal
	if errors.As(err, &no) {
		r.outcome, r.detail, r.body = of(no.code), no.status, no.body
		return r
	}
	if err != nil {
		r.detail = reason(err)
		return r
	}
	defer func() { _ = answer.Body.Close() }() // read only
	r.outcome, r.detail = of(answer.StatusCode), answer.Status
	if r.body, err = io.ReadAll(io.LimitReader(answer.Body, maxBody)); err != nil {
		r.outcome, r.detail = unreachable, answer.Status+", then "+err.Error()
	}
	return r
}

// reason leaves out of a client's error what the line says already.
func reason(err error) string {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return err.Error()
}

// failed tells a port that is closed, which something has to say, from silence.
func (r result) failed(err error) result {
	if errors.Is(err, syscall.ECONNREFUSED) {
		r.outcome = refused
	}
	r.detail = err.Error()
	return r
}

// dial connects, sends the text, and waits a moment for what the other side has
// to say.
func dial(ctx context.Context, address, text string) result {
	r := result{outcome: unreachable, what: "tcp " + address}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return r.failed(err)
	}
	defer func() { _ = conn.Close() }()
	r.outcome, r.detail = reached, "connected"
	_ = conn.SetDeadline(time.Now().Add(bannerWait))
	if _, err := io.WriteString(conn, text); err != nil {
		r.detail = "connected, then " + err.Error()
		return r
	}
	banner := make([]byte, maxBanner)
	if n, _ := conn.Read(banner); n > 0 { // silence is no failure
		r.detail = "connected: " + printable(banner[:n])
	}
	return r
}

// udp sends the text. Only an answer tells that it has arrived.
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
	answer := make([]byte, maxBanner)
	n, err := conn.Read(answer)
	if err != nil {
		return r.failed(err)
	}
	r.outcome, r.detail = reached, "answered: "+printable(answer[:n])
	return r
}

// printable is the text on one line, without what a terminal would obey.
func printable(data []byte) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return ' '
		}
		return c
	}, strings.TrimSpace(string(data)))
}
