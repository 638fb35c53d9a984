package main

import (
	"io"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// apiMark matches the words that a test looks for in requests to APIs.
var apiMark = regexp.MustCompile(`BOTTLE-TEST-[A-Z]+`)

// startAPIs starts a mock of the APIs of apiNames. It logs which kind of credential a
// request has and which marks are in its body, and answers every request with an error that clients do not retry: tests
// look at an agent's first requests only.
func (w *world) startAPIs() error {
	return w.serveHTTP(netip.AddrPortFrom(addrAPIs, 443), true, "api", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(io.LimitReader(r.Body, maxBody)) // of a client that left: nothing
		marks := apiMark.FindAllString(string(body), -1)
		slices.Sort(marks)
		w.log.add(event{Event: "api", Method: r.Method, Host: r.Host, Path: r.URL.Path, Type: apiCredential(r),
			Text: strings.Join(slices.Compact(marks), " ")})
		sendJSON(rw, http.StatusBadRequest, map[string]any{
			"error": map[string]any{"code": http.StatusBadRequest, "type": "invalid_request_error", "message": "this is a mock"}})
	}))
}

// apiCredential returns where a request has its credential, never the credential itself.
func apiCredential(r *http.Request) string {
	for _, name := range []string{"Authorization", "X-Api-Key", "X-Goog-Api-Key"} {
		if r.Header.Get(name) != "" {
			return name
		}
	}
	if r.URL.Query().Get("key") != "" {
		return "query"
	}
	return "none"
}
