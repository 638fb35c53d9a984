package plan

import (
	"context"
	"io"
	"time"

	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/provision"
)

// Renewable returns the injected variables whose values can change while the bottle runs:
// those in files, also of logins, and those of commands that expire.
func (p *Plan) Renewable() []provision.Variable {
	var out []provision.Variable
	for _, v := range p.Injected() {
		if v.Source == manifest.SourceFile || v.Source == provision.SourceLoginFile || v.TTL > 0 {
			out = append(out, v)
		}
	}
	return out
}

// RenewAt returns when the value that RunCommands has got for a variable is to be replaced;
// zero for the variables of files, which change at any time.
func (p *Plan) RenewAt(v provision.Variable) time.Time { return p.renewals[v.Name] }

// Renew reads the file of a variable again, or runs its command, with the caller's rights.
// next is when the new value is to be replaced, as in RenewAt. The value of a login may be
// there also if there is an error: it could not be renewed, and is still valid.
func (p *Plan) Renew(ctx context.Context, v provision.Variable) (value secret.Value, next time.Time, err error) {
	if v.Source == manifest.SourceCommand {
		return p.runCommand(ctx, v, io.Discard)
	}
	if v.Source == provision.SourceLoginFile {
		value, err = p.renewLogin(ctx, v)
		return value, next, err
	}
	data, err := p.caller.ReadPrivate(v.From, MaxVariable)
	if err != nil {
		return value, next, err
	}
	text, err := OneValue(v.From, data)
	return secret.New(text), next, err
}
