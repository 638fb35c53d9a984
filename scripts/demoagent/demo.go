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

// Where the lab's world has what the demo asks for; scripts/world/hosts.go.
const (
	allowedAddress = "198.51.101.10:443"
	dnsAddress     = "198.51.101.53:53"
)

// shortWait bounds an attempt that is meant to fail: a wall may be silent.
const shortWait = 3 * time.Second

// check is an attempt and how it has to end behind bottle's walls.
type check struct {
	want   outcome
	status string // of the answer, if there has to be one
	try    func(context.Context) result
}

func checks(o options) []check {
	page := func(url string) func(context.Context) result {
		return func(ctx context.Context) result { return shorten(get(ctx, o, url)) }
	}
	return []check{
		{reached, "200", page("https://allowed.test/")},
		{reached, "200", page("http://allowed.test/")},
		{refused, "403", page("https://refused.test/")},
		{refused, "403", page("http://refused.test/")},
		{unreachable, "", func(ctx context.Context) result {
			r := dial(ctx, allowedAddress, "")
			r.what += " without proxy"
			return r
		}},
		{unreachable, "", lookup},
	}
}

// shorten puts the page's first line into the result's own.
func shorten(r result) result {
	first, _, _ := strings.Cut(strings.TrimSpace(string(r.body)), "\n")
	if first != "" {
		r.detail += ": " + printable([]byte(first))
	}
	r.body = nil
	return r
}

// lookup asks the name server directly.
func lookup(ctx context.Context) result {
	r := result{outcome: unreachable, what: "dns allowed.test at " + dnsAddress}
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, dnsAddress)
	}}
	addrs, err := resolver.LookupHost(ctx, "allowed.test.")
	var no *net.DNSError
	if errors.As(err, &no) {
		r.detail = no.Err // the whole would name the configured server
		return r
	}
	if err != nil {
		r.detail = err.Error()
		return r
	}
	r.outcome, r.detail = reached, strings.Join(addrs, " ")
	return r
}

// demo prints where it runs and the outcome of each check. It returns 1 if one
// went otherwise than it has to, or if it cannot print.
func demo(ctx context.Context, o options, w io.Writer) int {
	var wrong []string
	err := here(w)
	for _, c := range checks(o) {
		r := c.run(ctx, o)
		if err == nil {
			err = r.print(w)
		}
		if r.outcome != c.want || !strings.HasPrefix(r.detail, c.status) {
			wrong = append(wrong, fmt.Sprintf("%s is %s and not %s", r.what, r.outcome, strings.TrimSpace(string(c.want)+" "+c.status)))
		}
	}
	if err == nil {
		err = sum(w, wrong)
	}
	if err != nil || len(wrong) > 0 {
		return 1
	}
	return 0
}

func (c check) run(ctx context.Context, o options) result {
	limit := o.timeout
	if c.want == unreachable {
		limit = min(limit, shortWait)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return c.try(ctx)
}

func sum(w io.Writer, wrong []string) error {
	if len(wrong) == 0 {
		_, err := fmt.Fprintln(w, "everything is as the walls say")
		return err
	}
	_, err := fmt.Fprintln(w, "WRONG:", strings.Join(wrong, "; "))
	return err
}
