package inject

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/secret"
)

// recorder is an upstream that records what reached it.
type recorder struct {
	mu       sync.Mutex
	requests []string
}

func (u *recorder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	dump, err := httputil.DumpRequest(r, true)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	u.mu.Lock()
	u.requests = append(u.requests, string(dump))
	u.mu.Unlock()
	_, _ = io.WriteString(w, "ok")
}

func (u *recorder) text() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return strings.Join(u.requests, "\n")
}

func (u *recorder) count() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.requests)
}

func TestInsertsInHeaders(t *testing.T) {
	both(t, func(t *testing.T, http2 bool) {
		for _, tc := range []struct{ name, header, before, after string }{
			{"bearer", "Authorization", "Bearer %s", ""},
			{"token", "Authorization", "token %s", ""},
			{"x-api-key", "X-Api-Key", "%s", ""},
			{"cookie", "Cookie", "a=b; session=%s; c=d", ""},
			{"private token", "Private-Token", "%s", ""},
			{"basic", "Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("me:PLACEHOLDER")), "Basic " + base64.StdEncoding.EncodeToString([]byte("me:"+realValue))},
			{"basic as user", "Authorization", "basic " + base64.StdEncoding.EncodeToString([]byte("PLACEHOLDER:x")), "basic " + base64.StdEncoding.EncodeToString([]byte(realValue+":x"))},
			{"none", "Authorization", "Bearer another", "Bearer another"},
		} {
			t.Run(tc.name, func(t *testing.T) {
				var got string
				w := newWorld(t, options{http2: http2, handler: func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Get(tc.header) }})
				r := w.request(http.MethodGet, "/v1/x?q=1;2&bad=%zz", nil)
				r.Header.Set(tc.header, w.fill(tc.before))
				res, _ := w.do(w.client(http2), r)
				want := tc.after
				if want == "" {
					want = fmt.Sprintf(tc.before, realValue)
				}
				check(t, "header", got, want)
				check(t, "status", res.StatusCode, http.StatusOK)
				check(t, "protocol", res.ProtoMajor, map[bool]int{false: 1, true: 2}[http2])
				e := w.await(KindRequest)
				check(t, "path", e.Path, "/v1/x")
				check(t, "secrets", fmt.Sprint(e.Secrets), map[bool]string{false: "[KEY]", true: "[]"}[tc.name == "none"])
			})
		}
	})
}

// fill writes the placeholder into a header, also inside Basic credentials.
func (w *world) fill(header string) string {
	scheme, encoded, _ := strings.Cut(header, " ")
	if text, err := base64.StdEncoding.DecodeString(encoded); err == nil && strings.Contains(string(text), "PLACEHOLDER") {
		return scheme + " " + base64.StdEncoding.EncodeToString([]byte(strings.ReplaceAll(string(text), "PLACEHOLDER", w.placeholder)))
	}
	return strings.ReplaceAll(header, "%s", w.placeholder)
}

func TestInsertsInQueryAndBody(t *testing.T) {
	for _, tc := range []struct {
		name, path, body, contentType string
		allowed                       func(*Secret)
		want                          string
	}{
		{"query", "/?key=PLACEHOLDER&a=b", "", "", func(s *Secret) { s.Query = true }, "key=" + realValue + "&a=b"},
		{"body", "/", `{"key":"PLACEHOLDER"}`, "application/json", func(s *Secret) { s.Body = true }, `{"key":"` + realValue + `"}`},
		{"form", "/", `a=b&key=PLACEHOLDER`, "application/x-www-form-urlencoded", func(s *Secret) { s.Body = true }, `a=b&key=` + realValue},
	} {
		t.Run(tc.name, func(t *testing.T) {
			send := func(allowed func(*Secret)) (int, string) {
				u := &recorder{}
				w := newWorld(t, options{http2: true, handler: u.ServeHTTP, secret: allowed})
				fill := func(s string) string { return strings.ReplaceAll(s, "PLACEHOLDER", w.placeholder) }
				r := w.request(http.MethodPost, fill(tc.path), strings.NewReader(fill(tc.body)))
				r.Header.Set("Content-Type", tc.contentType)
				res, _ := w.do(w.client(true), r)
				return res.StatusCode, u.text()
			}
			status, text := send(tc.allowed)
			if status != http.StatusOK || !strings.Contains(text, tc.want) {
				t.Errorf("permitted: %d %s", status, text)
			}
			status, text = send(nil)
			if strings.Contains(text, realValue) {
				t.Errorf("not permitted: %d %s", status, text)
			}
			check(t, "query refused", status == http.StatusForbidden, tc.name == "query")
		})
	}
}

func TestBodyIsBounded(t *testing.T) {
	u := &recorder{}
	w := newWorld(t, options{handler: u.ServeHTTP, secret: func(s *Secret) { s.Body = true }})
	res, _ := w.do(w.client(false), w.request(http.MethodPost, "/", bytes.NewReader(make([]byte, MaxBody+1))))
	check(t, "status", res.StatusCode, http.StatusRequestEntityTooLarge)
	res, _ = w.do(w.client(false), w.request(http.MethodPost, "/", bytes.NewReader(make([]byte, MaxBody))))
	check(t, "largest", res.StatusCode, http.StatusOK)
}

// TestPlaceholderToAnotherHost sends the placeholder of one terminated host to another.
// In the control the secret is for both.
func TestPlaceholderToAnotherHost(t *testing.T) {
	both(t, func(t *testing.T, http2 bool) {
		attack := func(hosts ...string) (*world, *recorder, int) {
			u := &recorder{}
			value := "ghp_" + fill(36, base62)
			w := newWorld(t, options{
				http2: http2, handler: http.NotFound, other: u.ServeHTTP, secret: func(s *Secret) { s.Hosts = hosts },
				target: otherHost + ":443",
				more:   []Secret{{Name: "GH", Value: secret.New(value), Placeholder: Placeholder(value), Hosts: []string{otherHost}}},
			})
			c := w.client(http2)
			c.Transport.(*http.Transport).TLSClientConfig.ServerName = otherHost
			r := w.request(http.MethodGet, "/", nil)
			r.URL.Host, r.Host = otherHost, otherHost
			r.SetBasicAuth("me", w.placeholder)
			res, body := w.do(c, r)
			w.checkClean(res, body)
			return w, u, res.StatusCode
		}
		w, u, status := attack(apiHost)
		check(t, "status", status, http.StatusForbidden)
		check(t, "requests at the other host", u.count(), 0)
		e := w.await(KindMisuse)
		check(t, "event", fmt.Sprint(e.Target, e.Secrets, e.Where), "other.example.test:443[KEY]header Authorization")
		_, u, status = attack(apiHost, otherHost)
		if basic := base64.StdEncoding.EncodeToString([]byte("me:" + realValue)); status != http.StatusOK || !strings.Contains(u.text(), basic) {
			t.Errorf("control: %d %s", status, u.text())
		}
	})
}

// TestPlaceholderInAnotherPart sends it where servers store or return it.
func TestPlaceholderInAnotherPart(t *testing.T) {
	for _, header := range []string{"User-Agent", "Referer", "Origin", "X-Forwarded-For", "Access-Control-Request-Headers", "Sec-Websocket-Protocol", "path", "X-Api-Key"} {
		t.Run(header, func(t *testing.T) {
			attack := func(allowed func(*Secret)) (string, int) {
				u := &recorder{}
				w := newWorld(t, options{handler: u.ServeHTTP, secret: allowed})
				r := w.request(http.MethodGet, "/", nil)
				r.Header.Set(header, w.placeholder)
				if header == "path" {
					r = w.request(http.MethodGet, "/a/"+w.placeholder, nil)
				}
				res, body := w.do(w.client(false), r)
				w.checkClean(res, body)
				if res.StatusCode == http.StatusForbidden {
					e := w.await(KindMisuse)
					check(t, "placeholder in the event", strings.Contains(fmt.Sprint(e), w.placeholder), false)
				}
				return u.text(), res.StatusCode
			}
			text, status := attack(func(s *Secret) { s.Headers = []string{"authorization"} })
			check(t, "status", status, http.StatusForbidden)
			check(t, "value sent", strings.Contains(text, realValue), false)
			if header == "path" {
				return // never permitted
			}
			text, status = attack(func(s *Secret) { s.Headers = []string{header} })
			check(t, "control: status", status, http.StatusOK)
			check(t, "control: value sent", strings.Contains(text, realValue), true)
			_, status = attack(nil)
			check(t, "permitted by default", status == http.StatusOK, header == "X-Api-Key")
		})
	}
}

// TestHostIsTheTunnels names another host in the request, behind the same server.
func TestHostIsTheTunnels(t *testing.T) {
	both(t, func(t *testing.T, http2 bool) {
		for host, want := range map[string]int{
			apiHost: 200, "API.example.test": 200, apiHost + ".": 200, apiHost + ":443": 200,
			otherHost: 421, "sub." + apiHost: 421, apiHost + ":8443": 421, "x@" + apiHost: 421, "[::1]:443": 421,
		} {
			if http2 && strings.ContainsAny(host, "@[") {
				continue // Go's client does not send it
			}
			u := &recorder{}
			w := newWorld(t, options{http2: http2, handler: u.ServeHTTP})
			r := w.request(http.MethodGet, "/", nil)
			r.Host = host
			r.Header.Set("X-Api-Key", w.placeholder)
			res, _ := w.do(w.client(http2), r)
			check(t, host, res.StatusCode, want)
			check(t, host+" reached the upstream", u.count(), map[bool]int{true: 1, false: 0}[want == 200])
			if want != 200 {
				w.await(KindHost)
			}
		}
	})
}

func TestServerNameIsTheTunnels(t *testing.T) {
	w := newWorld(t, options{handler: http.NotFound, more: []Secret{{
		Name: "GH", Value: secret.New("some-long-value"), Placeholder: Placeholder("some-long-value"), Hosts: []string{otherHost},
	}}})
	for name, good := range map[string]bool{apiHost: true, otherHost: false, "": false, "sub." + apiHost: false} {
		config := w.clientTLS()
		config.ServerName = name
		config.InsecureSkipVerify = true // the attacker does not care
		conn, err := tls.Dial("tcp", w.listen, config)
		check(t, "handshake for "+name, err == nil, good)
		if err == nil {
			_ = conn.Close()
		}
	}
	w.await(KindHost)
}

// TestUpstreamIsVerified: DNS that leads elsewhere meets the wrong certificate.
func TestUpstreamIsVerified(t *testing.T) {
	both(t, func(t *testing.T, http2 bool) {
		for name, cert := range map[string]func(a *authority) tls.Certificate{
			"control":         nil,
			"another host":    func(a *authority) tls.Certificate { return a.sign(t, otherHost, time.Now().Add(time.Hour)) },
			"subdomain":       func(a *authority) tls.Certificate { return a.sign(t, "sub."+apiHost, time.Now().Add(time.Hour)) },
			"expired":         func(a *authority) tls.Certificate { return a.sign(t, apiHost, time.Now().Add(-time.Hour)) },
			"other authority": func(*authority) tls.Certificate { return newAuthority(t).sign(t, apiHost, time.Now().Add(time.Hour)) },
		} {
			t.Run(name, func(t *testing.T) {
				u := &recorder{}
				w := newWorld(t, options{http2: http2, handler: u.ServeHTTP, cert: cert})
				r := w.request(http.MethodGet, "/", nil)
				r.Header.Set("X-Api-Key", w.placeholder)
				res, body := w.do(w.client(http2), r)
				if name == "control" {
					check(t, "status", res.StatusCode, http.StatusOK)
					return
				}
				check(t, "status", res.StatusCode, http.StatusBadGateway)
				check(t, "explained", strings.Contains(body, "certificate"), true)
				check(t, "requests", u.count(), 0)
				w.await(KindUpstream)
			})
		}
	})
}

func TestOtherTunnelsAreNotServed(t *testing.T) {
	w := newWorld(t, options{handler: http.NotFound})
	check(t, "host", w.in.Terminates(apiHost+":443"), true)
	for _, target := range []string{apiHost + ":8443", otherHost + ":443", "sub." + apiHost + ":443"} {
		check(t, target, w.in.Terminates(target), false)
		a, b := net.Pipe()
		if err := w.in.ServeConn(context.Background(), a, target); err == nil {
			t.Errorf("served %s", target)
		}
		if _, err := b.Write([]byte{0}); err == nil {
			t.Errorf("%s: the connection is open", target)
		}
	}
}
