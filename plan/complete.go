package plan

import (
	"errors"
	"fmt"
	"slices"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/provision"
)

// Pending reports whether an image must be built or pulled before the plan is
// complete, see WithImages.
func (p *Plan) Pending() bool { return p.Build != nil || p.Pull != "" || p.Proxy.Pull }

// WithImages returns the plan completed with the images that were built or pulled: the
// agent's image, or its base with a working directory, and the proxy's, nil for the
// built-in proxy. It sets the user, the digest of the proxy's image and the command of
// an agent that has none in the manifest. It does not change the receiver.
func (p *Plan) WithImages(agent ImageInfo, proxy *ImageInfo) (*Plan, error) {
	done := *p
	done.Build, done.Pull, done.Proxy.Pull = nil, "", false
	done.User, done.ImageDigest = agent.User, agent.Digest
	if proxy != nil {
		done.Proxy.Digest = proxy.Digest
	}
	if err := errors.Join(done.setCommand(agent), done.checkImages()); err != nil {
		return nil, err
	}
	return &done, nil
}

// setCommand sets the agent's command: the manifest's, or else the image's, followed
// by the arguments and the option for the prompt.
func (p *Plan) setCommand(info ImageInfo) error {
	command := p.command
	if len(command) == 0 {
		command = slices.Concat(info.Entrypoint, info.Cmd)
	}
	if len(command) == 0 {
		return &hint.Error{
			Err:  fmt.Errorf("missing command: neither agent %q nor its image has one", p.Agent),
			Hint: "set command for the agent in the manifest",
		}
	}
	command = p.kind.InMode(slices.Concat(command, p.args), p.Unattended)
	command, err := provision.PromptOption(p.kind, command, p.Prompt)
	if err != nil {
		return hint.Wrap(err, fmt.Sprintf("agent %q", p.Agent))
	}
	p.Command, p.ImageCommand = command, false
	return nil
}

// Question is a value that the user must enter before launch, without echo.
type Question struct {
	Variable string // to set; empty for a passphrase
	Ask      string // the manifest's question
	KeyFile  string // the private key that a passphrase opens
}

// Questions returns the values that the user must still enter, in order.
func (p *Plan) Questions() []Question {
	var out []Question
	for _, v := range p.Env {
		if v.Source == manifest.SourcePrompt {
			out = append(out, Question{Variable: v.Name, Ask: v.Ask})
		}
	}
	for _, file := range provision.LockedKeys(p.ssh) {
		out = append(out, Question{KeyFile: file})
	}
	return out
}

// Answer stores the value for a question. A passphrase is not kept; the error wraps
// provision.ErrPassphrase if it is wrong.
func (p *Plan) Answer(q Question, value secret.Value) error {
	if q.KeyFile != "" {
		return provision.UnlockKey(p.ssh, q.KeyFile, value)
	}
	for i, v := range p.Env {
		if v.Name == q.Variable && v.Source == manifest.SourcePrompt {
			p.Env[i].Secret = value
			return nil
		}
	}
	return fmt.Errorf("no question for the variable %q", q.Variable)
}
