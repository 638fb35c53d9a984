package plan

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/provision"
)

// commandTimeout bounds a command that prints a variable: it may ask the user to unlock
// a password store.
const commandTimeout = 2 * time.Minute

// Commands reports whether variables are still to be read from commands. They run only
// when the run is confirmed, because the manifest may be someone else's. A plan with
// such variables cannot be launched.
func (p *Plan) Commands() bool {
	for _, v := range p.Env {
		if v.Source == manifest.SourceCommand && v.Secret == (secret.Value{}) {
			return true
		}
	}
	return false
}

// RunCommands runs the commands that print variables, one after the other, with the
// caller's rights. stderr receives their standard error. It also renews a login of Claude
// Code's that ends soon, in its file. The error reports all failures.
func (p *Plan) RunCommands(ctx context.Context, stderr io.Writer) error {
	var problems hint.Problems
	p.renewals = map[string]time.Time{}
	for i, v := range p.Env {
		if v.Source != manifest.SourceCommand {
			continue
		}
		value, renew, err := p.runCommand(ctx, v, stderr)
		if err != nil {
			problems.Add(hint.Wrap(err, v.Name))
			continue
		}
		p.Env[i].Secret = value
		p.renewals[v.Name] = renew
	}
	problems.Add(p.renewClaude(ctx))
	return problems.Err()
}

// runCommand runs the command of a variable. renew is when it is to be run again, zero if
// the value does not expire.
func (p *Plan) runCommand(ctx context.Context, v provision.Variable, stderr io.Writer) (value secret.Value, renew time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	began := wallTime()
	out, err := p.caller.Output(ctx, v.Command, MaxVariable, stderr)
	if err != nil {
		return value, renew, err
	}
	text, err := OneValue("the output of "+v.Command[0], out)
	switch {
	case err != nil:
		return value, renew, err
	case text == "":
		return value, renew, fmt.Errorf("%s printed nothing", v.Command[0])
	case v.TTL == 0:
		return secret.New(text), renew, nil
	}
	end := began.Add(time.Duration(v.TTL) * time.Second)
	if strings.HasPrefix(text, "{") {
		if text, end, err = expiring([]byte(text), end); err != nil {
			return value, renew, &hint.Error{Err: fmt.Errorf("%s printed %w", v.Command[0], err), Hint: expiringHint}
		}
	}
	if life := end.Sub(began); life > 0 {
		return secret.New(text), began.Add(life - life/renewBefore), nil
	}
	return value, renew, fmt.Errorf("%s printed a value that has expired", v.Command[0])
}

// A value is renewed when this part of its life is left: 1/5.
const renewBefore = 5

const expiringHint = `expected the value, or {"token": "VALUE", "expires_at": "2026-01-02T15:04:05Z"}`

// expiring decodes the output of a command that says when its value expires; without a
// time, it is end.
func expiring(data []byte, end time.Time) (text string, _ time.Time, err error) {
	var out struct {
		Token     string    `json:"token"`
		ExpiresAt time.Time `json:"expires_at"` // RFC 3339
	}
	// An error of the decoder could quote the value.
	if json.Unmarshal(data, &out) != nil {
		return "", end, errors.New("invalid JSON")
	}
	if out.Token == "" {
		return "", end, errors.New("no token")
	}
	if !out.ExpiresAt.IsZero() {
		end = out.ExpiresAt
	}
	return out.Token, end, nil
}

// wallTime is the time of day: a value expires also while the host is suspended, in which
// the monotonic clock of time.Now stands still.
func wallTime() time.Time { return time.Now().Round(0) }
