package main

import (
	"net/http"
	"slices"
	"testing"
)

// TestAPIs checks what the mock of the agents' APIs logs of a request.
func TestAPIs(t *testing.T) {
	state := startWorld(t)
	client := newClient(t, state)
	for _, c := range []struct{ host, header, path, want string }{
		{"api.openai.com", "Authorization", "/v1/responses", "Authorization"},
		{"generativelanguage.googleapis.com", "X-Goog-Api-Key", "/", "X-Goog-Api-Key"},
		{"api.cline.bot", "X-Api-Key", "/", "X-Api-Key"},
		{"ampcode.com", "Accept", "/?key=1", "query"},
		{"opencode.ai", "Accept", "/", "none"},
	} {
		req := newRequest(t, http.MethodPost, "https://"+c.host+c.path, "a BOTTLE-TEST-B and BOTTLE-TEST-A, BOTTLE-TEST-B")
		req.Header.Set(c.header, "s3cret")
		if status, body := fetch(t, client, req); status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", c.host, status, body)
		}
		if !slices.ContainsFunc(readLog(t, state), func(e event) bool {
			return e.Event == "api" && e.Host == c.host && e.Type == c.want && e.Text == "BOTTLE-TEST-A BOTTLE-TEST-B"
		}) {
			t.Errorf("%s: the request is not in the log with %s", c.host, c.want)
		}
	}
}
