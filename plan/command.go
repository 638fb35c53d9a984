package plan

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/manifest"
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
// caller's rights. stderr receives their standard error. The error reports all failures.
func (p *Plan) RunCommands(ctx context.Context, stderr io.Writer) error {
	var problems hint.Problems
	for i, v := range p.Env {
		if v.Source != manifest.SourceCommand {
			continue
		}
		value, err := p.runCommand(ctx, v.Command, stderr)
		if err != nil {
			problems.Add(hint.Wrap(err, v.Name))
			continue
		}
		p.Env[i].Secret = secret.New(value)
	}
	return problems.Err()
}

func (p *Plan) runCommand(ctx context.Context, command []string, stderr io.Writer) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	out, err := p.caller.Output(ctx, command, MaxVariable, stderr)
	if err != nil {
		return "", err
	}
	value, err := OneValue("the output of "+command[0], out)
	if err == nil && value == "" {
		err = fmt.Errorf("%s printed nothing", command[0])
	}
	return value, err
}
