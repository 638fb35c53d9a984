package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// maxBody bounds a request, as in the real Messages API: 32 MB.
	maxBody = 32 << 20
	// keptBodies is the number of request bodies kept on disk.
	keptBodies = 50
)

// messagesAPI is a mock of the Messages API with a scripted conversation (script).
// It appends a line for each request to messages.jsonl in the state directory and
// keeps the last bodies as messages/N.json.
type messagesAPI struct {
	dir     string
	summary *os.File

	mu   sync.Mutex
	last int
}

// summary is a line of messages.jsonl.
type summary struct {
	Time time.Time `json:"time"`
	// N is the request's number, starting at 1.
	N     int    `json:"n"`
	Path  string `json:"path"`
	Query string `json:"query,omitempty"`
	// Auth is the kind of credential, never the credential itself: x-api-key,
	// bearer, both joined by +, or none.
	Auth string `json:"auth"`
	// Key is the SHA-256 of the credential, in hexadecimal.
	Key        string `json:"key"`
	Model      string `json:"model,omitempty"`
	Messages   int    `json:"messages"`
	Tools      int    `json:"tools"`
	Stream     bool   `json:"stream"`
	ToolResult bool   `json:"tool_result"`
	Answer     string `json:"answer"`
}

func (w *world) startMessages() error {
	api, err := newMessagesAPI(w.state)
	if err != nil {
		return err
	}
	w.closers = append(w.closers, api.summary)
	mux := http.NewServeMux()
	mux.Handle("/", api.handler())
	mux.Handle("POST platform.claude.com/v1/oauth/token", &tokenEndpoint{log: w.log, used: map[string]bool{}})
	return w.serveHTTP(netip.AddrPortFrom(addrMessages, 443), true, "messages", mux)
}

// newMessagesAPI removes the bodies of an earlier run but keeps its messages.jsonl.
func newMessagesAPI(state string) (*messagesAPI, error) {
	dir := filepath.Join(state, "messages")
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		return nil, fmt.Errorf("empty the messages' directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(state, "messages.jsonl"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the message log: %w", err)
	}
	return &messagesAPI{dir: dir, summary: f}, nil
}

func (a *messagesAPI) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/messages", a.create)
	mux.HandleFunc("POST /v1/messages/count_tokens", a.countTokens)
	mux.HandleFunc("/api/hello", func(rw http.ResponseWriter, _ *http.Request) {
		sendJSON(rw, http.StatusOK, map[string]string{"message": "hello"})
	})
	mux.HandleFunc("/", func(rw http.ResponseWriter, r *http.Request) {
		sendError(rw, http.StatusNotFound, "not_found_error", "unknown endpoint "+r.Method+" "+r.URL.Path)
	})
	return mux
}

func (a *messagesAPI) create(rw http.ResponseWriter, r *http.Request) {
	req, n, ok := a.receive(rw, r)
	if !ok {
		return
	}
	answer := script(req)
	if err := a.record(r, req, n, answer.kind()); err != nil {
		sendError(rw, http.StatusInternalServerError, "api_error", err.Error())
		return
	}
	m := newMessage(n, req.Model, answer)
	if req.Stream {
		m.stream(rw)
		return
	}
	sendJSON(rw, http.StatusOK, m)
}

func (a *messagesAPI) countTokens(rw http.ResponseWriter, r *http.Request) {
	req, n, ok := a.receive(rw, r)
	if !ok {
		return
	}
	if err := a.record(r, req, n, "count"); err != nil {
		sendError(rw, http.StatusInternalServerError, "api_error", err.Error())
		return
	}
	sendJSON(rw, http.StatusOK, map[string]int{"input_tokens": 10 * len(req.Messages)})
}

// receive reads the request and keeps its body. If ok is false, it has responded
// with an error.
func (a *messagesAPI) receive(rw http.ResponseWriter, r *http.Request) (req request, n int, ok bool) {
	body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, maxBody))
	if err != nil {
		sendError(rw, http.StatusRequestEntityTooLarge, "request_too_large", err.Error())
		return request{}, 0, false
	}
	if n, err = a.keep(body); err != nil {
		sendError(rw, http.StatusInternalServerError, "api_error", err.Error())
		return request{}, 0, false
	}
	if authKind(r.Header) == "none" {
		sendError(rw, http.StatusUnauthorized, "authentication_error", "x-api-key header is required")
		return request{}, 0, false
	}
	if err := json.Unmarshal(body, &req); err != nil {
		sendError(rw, http.StatusBadRequest, "invalid_request_error", err.Error())
		return request{}, 0, false
	}
	if len(req.Messages) == 0 {
		sendError(rw, http.StatusBadRequest, "invalid_request_error", "messages: at least one message is required")
		return request{}, 0, false
	}
	return req, n, true
}

// keep stores the body under the next number and removes the oldest.
func (a *messagesAPI) keep(body []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last++
	if err := writeFileAtomic(a.path(a.last), body, 0o644); err != nil {
		return 0, err
	}
	if err := os.Remove(a.path(a.last - keptBodies)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("remove an old message: %w", err)
	}
	return a.last, nil
}

func (a *messagesAPI) path(n int) string { return filepath.Join(a.dir, strconv.Itoa(n)+".json") }

func (a *messagesAPI) record(r *http.Request, req request, n int, answer string) error {
	_, isResult := req.lastUser().toolResult()
	line, err := json.Marshal(summary{
		Time: time.Now().UTC(), N: n, Path: r.URL.Path, Query: r.URL.RawQuery, Auth: authKind(r.Header),
		Key: keyHash(credential(r)), Model: req.Model, Messages: len(req.Messages), Tools: len(req.Tools), Stream: req.Stream,
		ToolResult: isResult, Answer: answer,
	})
	if err != nil {
		return fmt.Errorf("encode the summary: %w", err)
	}
	if _, err := a.summary.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write the message log: %w", err)
	}
	return nil
}

func authKind(h http.Header) string {
	var kinds []string
	if h.Get("X-Api-Key") != "" {
		kinds = append(kinds, "x-api-key")
	}
	if scheme, _, _ := strings.Cut(h.Get("Authorization"), " "); strings.EqualFold(scheme, "bearer") {
		kinds = append(kinds, "bearer")
	}
	if len(kinds) == 0 {
		return "none"
	}
	return strings.Join(kinds, "+")
}

// sendError responds with an error of the API and asks clients not to retry.
func sendError(rw http.ResponseWriter, status int, kind, message string) {
	rw.Header().Set("X-Should-Retry", "false")
	sendJSON(rw, status, map[string]any{
		"type": "error", "error": map[string]string{"type": kind, "message": message}})
}

func sendJSON(rw http.ResponseWriter, status int, v any) {
	rw.Header().Set("Content-Type", "application/json")
	rw.WriteHeader(status)
	_ = json.NewEncoder(rw).Encode(v) // fails if the client has disconnected
}
