package claudelogin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
)

// server is a token endpoint. As the real one, it accepts a refresh token once.
type server struct {
	*httptest.Server
	mu       sync.Mutex
	requests []map[string]string
	used     map[string]bool
	status   int    // of answers; 0: 200
	before   func() // called before an answer
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{used: map[string]bool{}}
	s.Server = httptest.NewTLSServer(http.HandlerFunc(s.serve))
	t.Cleanup(s.Close)
	return s
}

func (s *server) serve(w http.ResponseWriter, r *http.Request) {
	var q map[string]string
	err := json.NewDecoder(r.Body).Decode(&q)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, q)
	if s.before != nil {
		s.before()
	}
	switch token := q["refresh_token"]; {
	case err != nil || r.Method != http.MethodPost || q["grant_type"] != "refresh_token":
		w.WriteHeader(http.StatusBadRequest)
	case s.status != 0:
		w.WriteHeader(s.status)
		_, _ = io.WriteString(w, token) // an error must not show it
	case s.used[token]:
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"error": "invalid_grant", "error_description": "`+token+`"}`)
	default:
		s.used[token] = true
		_, _ = fmt.Fprintf(w, `{"access_token": "access-%d", "refresh_token": "refresh-%[1]d", "expires_in": 28800, "scope": "user:inference user:profile"}`, len(s.used))
	}
}

func (s *server) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.requests)
}

// newFile writes a login that ends after a time, and returns a function for keepers of it.
func newFile(t *testing.T, s *server, life time.Duration) (path string, keeper func() *Keeper) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), ".claude")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, ".credentials.json")
	write(t, path, fmt.Sprintf(`{"mcpOAuth": {"a": 1}, "claudeAiOauth": {"accessToken": "access-0", "refreshToken": "refresh-0", "expiresAt": %d, "scopes": ["user:inference"], "subscriptionType": "max", "other": [1.50]}}`,
		time.Now().Add(life).UnixMilli()))
	c := caller.Caller{Home: filepath.Dir(dir), UID: os.Getuid(), GID: os.Getgid()}
	return path, func() *Keeper {
		k := New(c, path)
		k.Endpoint, k.Client.Transport = s.URL, s.Client().Transport
		return k
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestRenew: of many keepers, one asks. The file has the new login and everything else that
// it had. The control is the same token without the locks: the server refuses it.
func TestRenew(t *testing.T) {
	s := newServer(t)
	path, keeper := newFile(t, s, time.Minute)
	if !keeper().Renewable() {
		t.Error("not renewable")
	}
	before := keeper()
	old, _, err := before.read()
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if err := keeper().Renew(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if s.count() != 1 {
		t.Fatalf("%d requests", s.count())
	}
	if q := s.requests[0]; q["refresh_token"] != "refresh-0" || q["client_id"] != clientID || q["scope"] != "user:inference" {
		t.Errorf("asked %v", q)
	}
	var f struct {
		MCP json.RawMessage `json:"mcpOAuth"`
		L   struct {
			login
			Subscription string          `json:"subscriptionType"`
			Other        json.RawMessage `json:"other"`
		} `json:"claudeAiOauth"`
	}
	if err := json.Unmarshal([]byte(read(t, path)), &f); err != nil {
		t.Fatal(err)
	}
	life := time.Until(time.UnixMilli(f.L.Expires))
	if f.L.Access != "access-1" || f.L.Refresh != "refresh-1" || life < 7*time.Hour || life > 8*time.Hour || len(f.L.Scopes) != 2 ||
		f.L.Subscription != "max" || string(f.L.Other) != "[1.50]" || string(f.MCP) != `{"a":1}` {
		t.Errorf("the file has %s", read(t, path))
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Mode() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*")); err != nil || len(left) != 1 {
		t.Errorf("left: %q, %v", left, err)
	}
	for _, lock := range []string{filepath.Join(filepath.Dir(path), ".oauth_refresh.lock"), filepath.Dir(path) + ".lock"} {
		if _, err := os.Stat(lock); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", lock, err)
		}
	}
	if _, err := before.ask(t.Context(), old); err == nil {
		t.Error("the server accepts a token twice")
	}
}

// TestNotDue: without a reason the server is not asked.
func TestNotDue(t *testing.T) {
	s := newServer(t)
	path, keeper := newFile(t, s, 11*time.Minute)
	check := func(text string) {
		t.Helper()
		before := read(t, path)
		if err := keeper().Renew(t.Context()); err != nil || s.count() > 0 || read(t, path) != before {
			t.Errorf("%s: %v, %d requests", text, err, s.count())
		}
	}
	check("eleven minutes left")
	write(t, path, `{"claudeAiOauth": {"accessToken": "a", "expiresAt": 1}}`)
	check("no refresh token")
	if keeper().Renewable() || keeper().Valid() {
		t.Error("an expired login without a refresh token is renewable or valid")
	}
	write(t, path, `{"claudeAiOauth": {"accessToken": "a", "refreshToken": "r", "expiresAt": null}}`)
	check("no end")
	if !keeper().Valid() {
		t.Error("a login without an end is not valid")
	}
	for _, text := range []string{"", "hunter2", `{"claudeAiOauth": "hunter2"}`} {
		write(t, path, text)
		if err := keeper().Renew(t.Context()); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestLocks: while Claude Code renews the login nothing is asked, by either of its locks. The
// control is a lock of a program that has died.
func TestLocks(t *testing.T) {
	s := newServer(t)
	path, keeper := newFile(t, s, time.Minute)
	for i, lock := range []string{filepath.Join(filepath.Dir(path), ".oauth_refresh.lock"), filepath.Dir(path) + ".lock"} {
		if err := os.Mkdir(lock, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := keeper().Renew(t.Context()); err != nil || s.count() != i {
			t.Errorf("%s is held: %v, %d requests", lock, err, s.count())
		}
		died := time.Now().Add(-staleTime - time.Second)
		if err := os.Chtimes(lock, died, died); err != nil {
			t.Fatal(err)
		}
		if err := keeper().Renew(t.Context()); err != nil || s.count() != i+1 {
			t.Errorf("%s is left: %v, %d requests", lock, err, s.count())
		}
		write(t, path, fmt.Sprintf(`{"claudeAiOauth": {"accessToken": "a", "refreshToken": "next", "expiresAt": %d}}`, time.Now().UnixMilli()))
	}
	unlock, err := lockDir(keeper().caller, filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	if err := keeper().Renew(t.Context()); err != nil || s.count() != 2 {
		t.Errorf("locked here: %v, %d requests", err, s.count())
	}
	if err := unlock(); err != nil {
		t.Error(err)
	}
}

// TestRefused: an error says what to do and shows no token, and the server is not asked again
// at once. After a refusal it is asked again only with another token.
func TestRefused(t *testing.T) {
	s := newServer(t)
	s.status = http.StatusBadGateway
	path, keeper := newFile(t, s, time.Minute)
	k := keeper()
	for range 3 {
		if err := k.Renew(t.Context()); err == nil || !strings.Contains(err.Error(), "answered 502") || strings.Contains(err.Error(), "refresh-0") {
			t.Errorf("got %v", err)
		}
	}
	if s.count() != 1 || !k.Valid() {
		t.Errorf("%d requests", s.count())
	}
	s.status, s.used["refresh-0"], k.retry = 0, true, time.Time{}
	for range 3 {
		k.retry = time.Time{}
		err := k.Renew(t.Context())
		if err == nil || hint.Of(err) != "log in with claude" || strings.Contains(err.Error(), "refresh-0") {
			t.Errorf("got %v", err)
		}
	}
	if s.count() != 2 {
		t.Errorf("%d requests", s.count())
	}
	write(t, path, strings.Replace(read(t, path), "refresh-0", "refresh-9", 1))
	if err := k.Renew(t.Context()); err != nil || s.count() != 3 || !strings.Contains(read(t, path), "access-2") {
		t.Errorf("after another login: %v, %d requests", err, s.count())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	write(t, path, `{"claudeAiOauth": {"accessToken": "a", "refreshToken": "b", "expiresAt": 1}}`)
	if err := k.Renew(ctx); !errors.Is(err, context.Canceled) || k.failed != nil {
		t.Errorf("cancelled: %v", err)
	}
}

// TestOtherLogin: a login that the user has made meanwhile stays.
func TestOtherLogin(t *testing.T) {
	s := newServer(t)
	path, keeper := newFile(t, s, time.Minute)
	const other = `{"claudeAiOauth": {"accessToken": "other", "refreshToken": "other-refresh", "expiresAt": 4102444800000}}`
	s.before = func() { write(t, path, other) }
	if err := keeper().Renew(t.Context()); err != nil || read(t, path) != other || s.count() != 1 {
		t.Errorf("%v, %d requests, %s", err, s.count(), read(t, path))
	}
}

// TestLink: a link to the file stays one.
func TestLink(t *testing.T) {
	s := newServer(t)
	path, keeper := newFile(t, s, time.Minute)
	real := filepath.Join(t.TempDir(), "login")
	if err := errors.Join(os.Rename(path, real), os.Symlink(real, path)); err != nil {
		t.Fatal(err)
	}
	if err := keeper().Renew(t.Context()); err != nil || !strings.Contains(read(t, real), "access-1") {
		t.Errorf("%v, %s", err, read(t, real))
	}
	if to, err := os.Readlink(path); err != nil || to != real {
		t.Errorf("%q, %v", to, err)
	}
}

// TestUnwritable: a token is not used up if its successor cannot be stored. As root, the
// caller is somebody who may not write.
func TestUnwritable(t *testing.T) {
	s := newServer(t)
	path, keeper := newFile(t, s, time.Minute)
	k, real := keeper(), filepath.Join(t.TempDir(), "login")
	// The link can be locked beside, but what it leads to cannot be replaced.
	if err := errors.Join(os.Rename(path, real), os.Symlink(real, path)); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		k.caller.UID, k.caller.GID = 54321, 54321
		for dir := filepath.Dir(real); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{real, filepath.Dir(path), filepath.Dir(filepath.Dir(path))} {
			if err := os.Chown(name, 54321, 54321); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Chmod(filepath.Dir(real), 0o555); err != nil {
		t.Fatal(err)
	}
	if err := k.Renew(t.Context()); !errors.Is(err, os.ErrPermission) || s.count() != 0 {
		t.Errorf("%v, %d requests", err, s.count())
	}
}
