package egress

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// While a policy is being learned, requests that it would refuse are allowed and
// logged, except those to private and special addresses.
func TestLearn(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "served") }))
	defer srv.Close()
	web, echoes := portOf(srv.Listener.Addr().String()), serveTCP(t, echo)
	p := startProxy(t, Config{Learn: true, Entries: Entries{Allow: []string{"example.com"}}})
	logged := func(target, scanner string) {
		t.Helper()
		p.log.wait(t, scanner+" of "+target, func(e Entry) bool {
			return e.Event == EventWouldBlock && e.Target == target && e.Scanner == scanner
		})
	}
	target := fmt.Sprintf("other.example.com:%d", web)
	if res, body, _ := p.raw(t, http.MethodGet, "GET http://"+target+"/ HTTP/1.1\r\nHost: x\r\n\r\n"); body != "served" {
		t.Errorf("plain HTTP: %s %q", res.Status, body)
	}
	logged(target, "allowlist")
	// A port that the entry does not allow, and a stream that is not TLS.
	target = fmt.Sprintf("example.com:%d", echoes)
	p.connect(t, target).roundTrip(t, "not TLS")
	logged(target, "port")
	logged(target, "sni")
	for _, target := range []string{"private.example:443", "meta.example:80", "10.0.0.1:443"} {
		res, body, _ := p.raw(t, http.MethodConnect, "CONNECT "+target+" HTTP/1.1\r\n\r\n")
		if res.StatusCode != http.StatusForbidden || !strings.Contains(body, "SSRF") {
			t.Errorf("CONNECT %s: %s %q", target, res.Status, body)
		}
	}
}

// While learning, a wrong server name passes, with all data that the client sent.
func TestLearnSNI(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "served") }))
	defer srv.Close()
	port := portOf(srv.Listener.Addr().String())
	p := startProxy(t, Config{Learn: true, Entries: Entries{Allow: []string{fmt.Sprintf("other.example.com:%d", port)}}})
	c := p.client(t, srv)
	tr := c.Transport.(*http.Transport)
	tr.TLSClientConfig.ServerName = "example.com" // in httptest's certificate
	res, err := c.Get(fmt.Sprintf("https://other.example.com:%d/", port))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil || string(body) != "served" {
		t.Errorf("%q, %v", body, err)
	}
	_ = res.Body.Close()
	p.log.wait(t, "would_block line", func(e Entry) bool { return e.Event == EventWouldBlock && e.Scanner == "sni" })
}

// Requests over an entry's limit get a 429, those to other entries do not, and
// the limit refills over time.
func TestRequestLimit(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "served") }))
	defer srv.Close()
	port := portOf(srv.Listener.Addr().String())
	entry := func(host string) string { return fmt.Sprintf("%s:%d", host, port) }
	p := startProxy(t, Config{MaxRequests: 3, Entries: Entries{Allow: []string{entry("*.example.com"), entry("unreachable.test")}}})
	now := time.Now()
	p.rates.now = func() time.Time { return now }
	get := func(host string) int {
		res, _, _ := p.raw(t, http.MethodGet, "GET http://"+entry(host)+"/ HTTP/1.1\r\nHost: x\r\n\r\n")
		return res.StatusCode
	}
	// Two hosts of one entry share its limit.
	for i, want := range []int{200, 200, 200, 429, 429} {
		if got := get([]string{"a.example.com", "git.example.com"}[i%2]); got != want {
			t.Errorf("request %d: %d, want %d", i, got, want)
		}
	}
	if got := get("unreachable.test"); got != 200 {
		t.Errorf("another entry: %d", got)
	}
	e := p.log.wait(t, "429", func(e Entry) bool { return e.Status == 429 })
	if e.Event != EventBlocked || e.Scanner != "ratelimit" {
		t.Errorf("logged %+v", e)
	}
	now = now.Add(20 * time.Second) // one of three a minute
	if got := []int{get("a.example.com"), get("a.example.com")}; got[0] != 200 || got[1] != 429 {
		t.Errorf("after 20 s: %v", got)
	}
	if err := p.Reload(testConfig(Config{Entries: Entries{Allow: []string{"example.com"}}})); err != nil {
		t.Fatal(err)
	}
	if n := len(p.rates.buckets); n != 0 {
		t.Errorf("%d entries of the old policy still have a rate", n)
	}
}
