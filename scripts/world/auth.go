package main

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"strings"
)

// withAuth serves /auth/HASH/PATH as PATH to requests with the credential whose SHA-256 is
// HASH, in hexadecimal: so a test can see which credential has arrived, and the world
// needs to know none. Other requests get 401.
func withAuth(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rest, ok := strings.CutPrefix(r.URL.Path, "/auth/")
		if !ok {
			next.ServeHTTP(rw, r)
			return
		}
		hash, path, _ := strings.Cut(rest, "/")
		if keyHash(credential(r)) != hash {
			rw.Header().Set("WWW-Authenticate", `Basic realm="world"`)
			http.Error(rw, "wrong credential", http.StatusUnauthorized)
			return
		}
		inner := r.Clone(r.Context())
		inner.URL = &url.URL{Path: "/" + path, RawQuery: r.URL.RawQuery}
		inner.RequestURI = inner.URL.RequestURI()
		next.ServeHTTP(rw, inner)
	})
}

// credential returns the credential of a request: the password of Basic, what follows
// another scheme, x-api-key, a cookie called session or the parameter key.
func credential(r *http.Request) string {
	if _, password, ok := r.BasicAuth(); ok {
		return password
	}
	if _, token, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok {
		return token
	}
	if key := r.Header.Get("X-Api-Key"); key != "" {
		return key
	}
	if c, err := r.Cookie("session"); err == nil {
		return c.Value
	}
	return r.URL.Query().Get("key")
}

func keyHash(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}
