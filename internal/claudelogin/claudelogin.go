// Package claudelogin renews the login of Claude Code in the user's own file, as Claude Code
// does, before it expires. The refresh token can be used once: whoever uses it has to store its
// successor, and two programs must not use it at the same time. So this package takes Claude
// Code's own locks, and reads the file again under them. All files are accessed with the
// user's rights.
//
// The format of the file, the locks and the request are those of Claude Code 2.1.330.
package claudelogin

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/bot-bottle/bottle/internal/atomicfile"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
)

const (
	endpoint = "https://platform.claude.com/v1/oauth/token"
	// clientID is that of Claude Code, to which the login was given.
	clientID = "9d1c250a-e61b-44d9-88ed-5944d1962f5e"

	// Margin is how long before its end a login is renewed. Claude Code renews it 5 minutes
	// before.
	Margin = 10 * time.Minute
	// requestTime bounds the request, and retryTime is the time between two that fail.
	requestTime = 20 * time.Second
	retryTime   = 30 * time.Second

	maxFile   = 1 << 20
	maxAnswer = 64 << 10
)

// Keeper keeps one login valid. It is safe for concurrent use.
type Keeper struct {
	// Endpoint and Client are replaced by tests.
	Endpoint string
	Client   *http.Client

	caller caller.Caller
	path   string

	mu sync.Mutex
	// failed is the last error, which is returned until retry, and for as long as the file has
	// the refused token.
	failed  error
	retry   time.Time
	refused string
}

// New returns a keeper for the user's file. It does nothing by itself.
func New(c caller.Caller, path string) *Keeper {
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return &Keeper{Endpoint: endpoint, Client: client, caller: c, path: path}
}

// login is what the file has of a login. Times are in milliseconds since 1970.
type login struct {
	Access   string   `json:"accessToken"`
	Refresh  string   `json:"refreshToken"`
	Expires  int64    `json:"expiresAt"`
	Scopes   []string `json:"scopes"`
	ClientID string   `json:"clientId"`
}

// due reports whether a login is to be renewed. One without an end, such as that of `claude
// setup-token`, is not.
func (l login) due() bool {
	return l.Refresh != "" && l.Expires > 0 && time.Until(time.UnixMilli(l.Expires)) < Margin
}

// Renewable reports whether the file's login ends and can be renewed.
func (k *Keeper) Renewable() bool {
	l, _, err := k.read()
	return err == nil && l.Refresh != "" && l.Expires > 0
}

// Valid reports whether the file's login can still be used.
func (k *Keeper) Valid() bool {
	l, _, err := k.read()
	return err == nil && (l.Expires == 0 || time.Now().Before(time.UnixMilli(l.Expires)))
}

// Renew renews the login if it ends soon, and stores the new one in the file. If another
// program does that at this moment, Renew does nothing. After an error it does not ask again
// for a while, and returns the same error.
func (k *Keeper) Renew(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	l, _, err := k.read()
	if err != nil || !l.due() {
		k.failed = nil
		return err
	}
	if k.failed != nil && (l.Refresh == k.refused || time.Now().Before(k.retry)) {
		return k.failed
	}
	var locked *lockedError
	switch err = k.renewLocked(ctx); {
	case errors.As(err, &locked):
		return nil // it is being renewed
	case err != nil && ctx.Err() == nil:
		k.failed, k.retry = fmt.Errorf("renew the login in %s: %w", k.path, err), time.Now().Add(retryTime)
		return k.failed
	}
	k.failed = nil
	return err
}

func (k *Keeper) renewLocked(ctx context.Context) (err error) {
	unlock, err := lockDir(k.caller, filepath.Dir(k.path))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	l, data, err := k.read()
	if err != nil || !l.due() {
		return err
	}
	// The answer must not be lost: a directory that cannot be written, or has no space, is
	// found before the token is used up.
	if err := k.tryWrite(2 * len(data)); err != nil {
		return err
	}
	got, err := k.ask(ctx, l)
	if err != nil {
		return err
	}
	return k.store(l, got)
}

// read returns the login in the file, and the file.
func (k *Keeper) read() (login, []byte, error) {
	var f struct {
		Login login `json:"claudeAiOauth"`
	}
	data, err := k.caller.ReadPrivate(k.path, maxFile)
	if err == nil && json.Unmarshal(data, &f) != nil {
		err = fmt.Errorf("unknown form of %s", k.path)
	}
	return f.Login, data, err
}

// tryWrite writes as many bytes as a new file may have, next to the file.
func (k *Keeper) tryWrite(size int) error {
	return k.caller.Do(func() error {
		real, err := filepath.EvalSymlinks(k.path)
		if err != nil {
			return err
		}
		f, err := os.CreateTemp(filepath.Dir(real), ".try-")
		if err != nil {
			return err
		}
		_, err = f.Write(make([]byte, size))
		return errors.Join(err, f.Close(), os.Remove(f.Name()))
	})
}

// write replaces the file, also where a link leads to it.
func (k *Keeper) write(data []byte) error {
	return k.caller.Do(func() error {
		real, err := filepath.EvalSymlinks(k.path)
		if err != nil {
			return err
		}
		return atomicfile.Write(real, data, 0o600)
	})
}

// answer is what the server returns (RFC 6749, section 5.1). Its times are in seconds.
type answer struct {
	Access         string `json:"access_token"`
	Refresh        string `json:"refresh_token"`
	Expires        int64  `json:"expires_in"`
	RefreshExpires int64  `json:"refresh_token_expires_in"`
	Scope          string `json:"scope"`
}

// ask uses the refresh token up.
func (k *Keeper) ask(ctx context.Context, l login) (answer, error) {
	question := map[string]string{"grant_type": "refresh_token", "refresh_token": l.Refresh, "client_id": cmp.Or(l.ClientID, clientID)}
	if len(l.Scopes) > 0 {
		question["scope"] = strings.Join(l.Scopes, " ")
	}
	data, err := json.Marshal(question)
	if err != nil {
		return answer{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, k.Endpoint, bytes.NewReader(data))
	if err != nil {
		return answer{}, err
	}
	r.Header.Set("Content-Type", "application/json")
	r.GetBody = nil // the request must not be sent twice
	res, err := k.Client.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return answer{}, fmt.Errorf("read the answer of %s: %w", k.Endpoint, err)
	}
	var a answer
	switch {
	case res.StatusCode != http.StatusOK:
		return a, k.refusal(l, res.StatusCode, text)
	case json.Unmarshal(text, &a) != nil || a.Access == "" || a.Expires <= 0:
		return a, fmt.Errorf("unknown form of the answer of %s", k.Endpoint)
	}
	return a, nil
}

// refusal is the error of an answer, of which it shows only the code.
func (k *Keeper) refusal(l login, status int, text []byte) error {
	var e struct {
		Error string `json:"error"` // RFC 6749, section 5.2
	}
	_ = json.Unmarshal(text, &e) // an answer of another form has no code
	if e.Error != "invalid_grant" {
		return fmt.Errorf("%s answered %d", k.Endpoint, status)
	}
	k.refused = l.Refresh
	return &hint.Error{Err: fmt.Errorf("%s no longer accepts it", k.Endpoint), Hint: "log in with claude"}
}

// store writes a new login to the file, with everything else in it as it is. If the file has
// another login by now, that one stays.
func (k *Keeper) store(old login, a answer) error {
	now, data, err := k.read()
	if err != nil || now.Refresh != old.Refresh {
		return err
	}
	var file, fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &file); err != nil {
		return err
	}
	if err := json.Unmarshal(file["claudeAiOauth"], &fields); err != nil {
		return err
	}
	at := func(seconds int64) int64 { return time.Now().Add(time.Duration(seconds) * time.Second).UnixMilli() }
	changes := map[string]any{"accessToken": a.Access, "refreshToken": cmp.Or(a.Refresh, old.Refresh), "expiresAt": at(a.Expires)}
	if a.RefreshExpires > 0 {
		changes["refreshTokenExpiresAt"] = at(a.RefreshExpires)
	}
	if a.Scope != "" {
		changes["scopes"] = strings.Fields(a.Scope)
	}
	for name, value := range changes {
		if fields[name], err = json.Marshal(value); err != nil {
			return err
		}
	}
	if file["claudeAiOauth"], err = json.Marshal(fields); err != nil {
		return err
	}
	if data, err = json.Marshal(file); err != nil {
		return err
	}
	return k.write(data)
}
