package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// Addresses of the lab's world (scripts/world/hosts.go).
const (
	allowedAddress = "198.51.101.10:443"
	dnsAddress     = "198.51.101.53:53"
)

// unreachableTimeout bounds attempts that are expected to fail, because packets
// may be dropped silently.
const unreachableTimeout = 3 * time.Second

// check is an attempt and its expected outcome inside a bottle.
type check struct {
	want   outcome
	status string // expected HTTP status; empty: any
	try    func(context.Context) result
}

func checks(o options) []check {
	page := func(url string) func(context.Context) result {
		return func(ctx context.Context) result { return firstLine(get(ctx, o, url)) }
	}
	return []check{
		{reached, "200", page("https://allowed.test/")},
		{reached, "200", page("http://allowed.test/")},
		{refused, "403", page("https://refused.test/")},
		{refused, "403", page("http://refused.test/")},
		{unreachable, "", func(ctx context.Context) result {
			r := dial(ctx, allowedAddress, "")
			r.what += " without the proxy"
			return r
		}},
		{unreachable, "", lookup},
	}
}

// firstLine replaces the result's body with its first line, as part of detail.
func firstLine(r result) result {
	first, _, _ := strings.Cut(strings.TrimSpace(string(r.body)), "\n")
	if first != "" {
		r.detail += ": " + printable([]byte(first))
	}
	r.body = nil
	return r
}

// lookup queries the name server directly.
func lookup(ctx context.Context) result {
	r := result{outcome: unreachable, what: "dns allowed.test at " + dnsAddress}
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, dnsAddress)
	}}
	addrs, err := resolver.LookupHost(ctx, "allowed.test.")
	var dnsErr *net.DNSError
	if errors.As(err, &dnsErr) {
		r.detail = dnsErr.Err // the full text names the configured server, which was not asked
		return r
	}
	if err != nil {
		r.detail = err.Error()
		return r
	}
	r.outcome, r.detail = reached, strings.Join(addrs, " ")
	return r
}

// demo prints its environment and the result of each check. It returns 1 if a
// check fails or if it cannot print.
func demo(ctx context.Context, o options, w io.Writer) int {
	var failures []string
	err := printEnvironment(w)
	for _, c := range checks(o) {
		r := c.run(ctx, o)
		if err == nil {
			err = r.print(w)
		}
		if r.outcome != c.want || !strings.HasPrefix(r.detail, c.status) {
			want := strings.TrimSpace(string(c.want) + " " + c.status)
			failures = append(failures, fmt.Sprintf("%s: got %s, want %s", r.what, r.outcome, want))
		}
	}
	if err == nil {
		err = printSummary(w, failures)
	}
	if err != nil || len(failures) > 0 {
		return 1
	}
	return 0
}

func (c check) run(ctx context.Context, o options) result {
	timeout := o.timeout
	if c.want == unreachable {
		timeout = min(timeout, unreachableTimeout)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return c.try(ctx)
}

func printSummary(w io.Writer, failures []string) error {
	if len(failures) == 0 {
		_, err := fmt.Fprintln(w, "all checks passed")
		return err
	}
	_, err := fmt.Fprintln(w, "FAILED:", strings.Join(failures, "; "))
	return err
}
