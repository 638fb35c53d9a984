package inject

import (
	"compress/gzip"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/secret"
)

// TestRedirect: the client gets the redirect, and nothing follows it here.
func TestRedirect(t *testing.T) {
	other := &recorder{}
	w := newWorld(t, options{other: other.ServeHTTP, handler: func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://"+otherHost+"/?token="+r.Header.Get("X-Api-Key"), http.StatusTemporaryRedirect)
	}})
	r := w.request(http.MethodGet, "/", nil)
	r.Header.Set("X-Api-Key", w.placeholder)
	res, body := w.do(w.client(false), r)
	check(t, "status", res.StatusCode, http.StatusTemporaryRedirect)
	check(t, "location", res.Header.Get("Location"), "https://"+otherHost+"/?token="+w.placeholder)
	check(t, "followed", other.count(), 0)
	w.checkClean(res, body)
	check(t, "echo in", w.await(KindEcho).Where, "header Location")
}

// TestEcho lets an API return the credential in many ways. The control is the same
// client at the API without the injector.
func TestEcho(t *testing.T) {
	both(t, func(t *testing.T, http2 bool) {
		split := func(w http.ResponseWriter, s string) {
			for _, c := range []byte(s) {
				_, _ = w.Write([]byte{c})
				_ = http.NewResponseController(w).Flush()
			}
		}
		zip := func(w http.ResponseWriter, s string) {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, _ = io.WriteString(z, s)
			_ = z.Close()
		}
		for name, echo := range map[string]func(w http.ResponseWriter, key string){
			"body":   func(w http.ResponseWriter, key string) { _, _ = io.WriteString(w, "your key is "+key) },
			"header": func(w http.ResponseWriter, key string) { w.Header().Set("X-Key", key) },
			"cookie": func(w http.ResponseWriter, key string) { w.Header().Set("Set-Cookie", "k="+key) },
			"split":  func(w http.ResponseWriter, key string) { split(w, `{"key":"`+key+`"}`) },
			"binary": func(w http.ResponseWriter, key string) { w.Header().Set("Content-Type", "image/png"); split(w, key) },
			"error":  func(w http.ResponseWriter, key string) { http.Error(w, key, http.StatusUnauthorized) },
			"gzip": func(w http.ResponseWriter, key string) {
				w.Header().Set("Content-Type", "text/plain")
				zip(w, "key "+key)
			},
			"gzip binary":  func(w http.ResponseWriter, key string) { w.Header().Set("Content-Type", "image/png"); zip(w, key) },
			"gzip untyped": func(w http.ResponseWriter, key string) { w.Header()["Content-Type"] = nil; zip(w, "key "+key) },
			"trailer": func(w http.ResponseWriter, key string) {
				w.Header().Set("Trailer", "X-Key")
				_, _ = io.WriteString(w, "x")
				w.Header().Set("X-Key", key)
			},
			"new trailer": func(w http.ResponseWriter, key string) { w.Header().Set(http.TrailerPrefix+"X-Key", key) },
			"early hints": func(w http.ResponseWriter, key string) {
				w.Header().Set("Link", key)
				w.WriteHeader(http.StatusEarlyHints)
				w.Header().Del("Link")
			},
		} {
			t.Run(name, func(t *testing.T) {
				var got string
				w := newWorld(t, options{http2: http2, handler: func(w http.ResponseWriter, r *http.Request) {
					got = r.Header.Get("X-Api-Key")
					echo(w, got)
				}})
				r := w.request(http.MethodGet, "/", nil)
				r.Header.Set("X-Api-Key", w.placeholder)
				r.Header.Set("Accept-Encoding", "gzip, br")
				res, body := w.do(w.client(http2), r)
				check(t, "sent", got, realValue)
				if e := w.await(KindEcho); len(e.Secrets) != 1 || e.Secrets[0] != "KEY" {
					t.Errorf("event %+v", e)
				}
				w.checkClean(res, body)
			})
		}
	})
}

// TestEchoOfBasic returns the credentials as they were sent. The last character of base64
// also depends on what follows the value.
func TestEchoOfBasic(t *testing.T) {
	const placeholder = "ghp_PPPPPPPPPPPPPPPPPPPPPPPPPPPPPPPPPPPA"
	w := newWorld(t, options{
		secret: func(s *Secret) {
			s.Value, s.Placeholder = secret.New("ghp_RRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRz"), placeholder
		},
		handler: func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, r.Header.Get("Authorization"))
		},
	})
	r := w.request(http.MethodGet, "/", nil)
	r.SetBasicAuth("me", placeholder)
	_, body := w.do(w.client(false), r)
	check(t, "echo", body, r.Header.Get("Authorization"))
}

// TestEncodings: a server that ignores Accept-Encoding cannot hide an echo in text.
func TestEncodings(t *testing.T) {
	var accept string
	w := newWorld(t, options{handler: func(w http.ResponseWriter, r *http.Request) {
		accept = r.Header.Get("Accept-Encoding")
		w.Header().Set("Content-Encoding", r.URL.Query().Get("e"))
		w.Header().Set("Content-Type", r.URL.Query().Get("t"))
		_, _ = io.WriteString(w, "bytes")
	}})
	for _, tc := range []struct {
		send, accept, encoding, contentType string
		status                              int
	}{
		{"br, zstd", "identity", "br", "text/plain", 502},
		{"gzip;q=0, br", "identity", "br", "image/svg+xml", 502},
		{"br, gzip;q=0.5", "gzip", "br", "application/zip", 200},
	} {
		r := w.request(http.MethodGet, "/?e="+tc.encoding+"&t="+strings.ReplaceAll(tc.contentType, "+", "%2b"), nil)
		r.Header.Set("Accept-Encoding", tc.send)
		res, body := w.do(w.client(false), r)
		check(t, tc.send, accept, tc.accept)
		check(t, tc.encoding+" "+tc.contentType, res.StatusCode, tc.status)
		if tc.status == http.StatusOK {
			check(t, "body", body, "bytes")
			check(t, "encoding", res.Header.Get("Content-Encoding"), tc.encoding)
		}
	}
}
