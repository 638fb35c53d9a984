package egress

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// Requests for the sandbox's own addresses and names are refused as such, so that
// nobody is advised to allow them.
func TestOwnAddresses(t *testing.T) {
	for _, learn := range []bool{false, true} {
		// The client's own address is 127.0.0.1 here, and so is the proxy's.
		p := startProxy(t, Config{
			SelfNames: []string{"Dev-Agent.", "agent.internal", "", strings.Repeat("x", 64), "x-"}, Learn: learn,
			Entries: Entries{Allow: []string{"example.com", "localhost:9", "0.0.0.0:9"}, AllowPrivate: []string{"10.0.0.0/8"}},
		})
		for host, scanner := range map[string]string{
			"127.0.0.1": "self", "127.0.1.1": "self", "[::1]": "self", "[::]": "self", "0.0.0.0": "self",
			"[::ffff:127.0.0.1]": "self", "localhost": "self", "LocalHost.": "self", "a.localhost": "self",
			"dev-agent": "self", "DEV-AGENT.": "self", "agent.internal": "self",
			"xlocalhost": "allowlist", "x.dev-agent": "allowlist", "localhost.example": "allowlist", "private.example": "allowlist",
		} {
			if learn && scanner != "self" {
				continue // tried, and not refused for the host
			}
			for _, text := range []string{"CONNECT " + host + ":8123", "GET http://" + host + ":8123/"} {
				method, _, _ := strings.Cut(text, " ")
				res, body, _ := p.raw(t, method, text+" HTTP/1.1\r\nHost: x\r\n\r\n")
				_, last := p.log.refusals()
				if res.StatusCode != http.StatusForbidden || last.Scanner != scanner || !strings.Contains(body, last.Reason) {
					t.Errorf("%s: %s %q, logged as %+v, want %s", text, res.Status, body, last, scanner)
				}
				if scanner == "self" && !strings.Contains(body, "the sandbox's own address: connect to it without the proxy") {
					t.Errorf("%s: %q", text, body)
				}
			}
		}
		// Allowed by name or address, and not there.
		for _, target := range []string{"localhost:9", "0.0.0.0:9"} {
			if _, body, _ := p.raw(t, http.MethodConnect, "CONNECT "+target+" HTTP/1.1\r\n\r\n"); !strings.Contains(body, "the sandbox's own address") {
				t.Errorf("%s: %q", target, body)
			}
		}
		if n := len(p.log.events(EventWouldBlock)); n > 0 {
			t.Errorf("%d requests to the sandbox itself are noted for the policy", n)
		}
	}
}

// No name and no policy leads to the proxy's own listener. Another server on the
// same address is reached: it is the listener that is refused.
func TestProxyIsNotReached(t *testing.T) {
	other := webServer(t)
	dns := fakeDNS{"rebind.example.": {"127.0.0.1"}, "mixed.example.": {"127.0.0.2", "127.0.0.1"}, "mapped.example.": {"::ffff:127.0.0.1"}, "any.example.": {"0.0.0.0"}}
	p := startProxy(t, Config{Resolver: dns})
	port := portOf(p.addr)
	hosts := []string{"127.0.0.1", "rebind.example", "mixed.example", "mapped.example", "any.example", "0.0.0.0"}
	entries := Entries{AllowPrivate: []string{"127.0.0.0/8", "0.0.0.0"}}
	for _, h := range hosts {
		entries.Allow = append(entries.Allow, fmt.Sprintf("%s:%d", h, port), fmt.Sprintf("%s:%d", h, other))
		entries.SSH = append(entries.SSH, fmt.Sprintf("%s:%d", h, port))
	}
	if err := p.Reload(Config{Entries: entries, Resolver: dns}); err != nil {
		t.Fatal(err)
	}
	for _, h := range hosts {
		for _, text := range []string{fmt.Sprintf("CONNECT %s:%d", h, port), fmt.Sprintf("GET http://%s:%d/health", h, port)} {
			method, _, _ := strings.Cut(text, " ")
			res, body, _ := p.raw(t, method, text+" HTTP/1.1\r\nHost: x\r\n\r\n")
			_, last := p.log.refusals()
			if res.StatusCode != http.StatusForbidden || last.Scanner != "self" || !strings.Contains(body, "the egress proxy itself") {
				t.Errorf("%s: %s %q, logged as %+v", text, res.Status, body, last)
			}
		}
		if h == "mixed.example" {
			continue // nothing is at its first address
		}
		if res, body, _ := p.raw(t, http.MethodGet, fmt.Sprintf("GET http://%s:%d/ HTTP/1.1\r\nHost: x\r\n\r\n", h, other)); res.StatusCode != http.StatusOK {
			t.Errorf("another server at %s: %s %q", h, res.Status, body)
		}
	}
	// The socket's control hook refuses it, too, if no earlier check did.
	d := p.current.Load().dialer
	if conn, err := dialOne(t.Context(), d.netDialer("rebind.example"), *p.listen.Load(), 1); err == nil || !strings.Contains(err.Error(), errProxyAddress.Error()) {
		t.Errorf("dialed the proxy: %v, %v", conn, err)
	}
	// The control: without the check, the proxy is reached through itself.
	d.self = nil
	if res, body, _ := p.raw(t, http.MethodGet, fmt.Sprintf("GET http://rebind.example:%d/health HTTP/1.1\r\nHost: x\r\n\r\n", port)); res.StatusCode != http.StatusOK || !strings.Contains(body, "healthy") {
		t.Errorf("without the check: %s %q", res.Status, body)
	}
}
