package main

import (
	"crypto/rand"
	"encoding/json"
	"net/http"
	"sync"
)

// tokenEndpoint is a mock of the endpoint at which Claude Code renews its login. It accepts any
// refresh token, and each of them once (RFC 9700, section 4.14.2). It logs its hash.
type tokenEndpoint struct {
	log *eventLog

	mu   sync.Mutex
	used map[string]bool
}

func (e *tokenEndpoint) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	var q struct {
		GrantType    string `json:"grant_type"`
		RefreshToken string `json:"refresh_token"`
		ClientID     string `json:"client_id"`
		Scope        string `json:"scope"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(rw, r.Body, maxBody)).Decode(&q); err != nil || q.GrantType != "refresh_token" || q.ClientID == "" {
		sendJSON(rw, http.StatusBadRequest, map[string]string{"error": "invalid_request"})
		return
	}
	hash := keyHash(q.RefreshToken)
	e.mu.Lock()
	again := e.used[hash]
	e.used[hash] = true
	e.mu.Unlock()
	e.log.add(event{Event: "oauth", Host: r.Host, Path: r.URL.Path, Type: q.GrantType, Text: hash})
	if again {
		sendJSON(rw, http.StatusBadRequest, map[string]string{"error": "invalid_grant"})
		return
	}
	sendJSON(rw, http.StatusOK, map[string]any{
		"token_type": "Bearer", "expires_in": 28800, "scope": q.Scope,
		"access_token": "sk-ant-oat01-" + rand.Text() + rand.Text(), "refresh_token": "sk-ant-ort01-" + rand.Text() + rand.Text(),
	})
}
