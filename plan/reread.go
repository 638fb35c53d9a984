package plan

import (
	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/provision"
)

// InjectedFiles returns the injected variables whose values are in files, which may change
// while the bottle runs.
func (p *Plan) InjectedFiles() []provision.Variable {
	var out []provision.Variable
	for _, v := range p.Env {
		if v.Source == manifest.SourceFile && len(v.Inject) > 0 {
			out = append(out, v)
		}
	}
	return out
}

// Reread reads the file of a variable again, with the caller's rights.
func (p *Plan) Reread(v provision.Variable) (secret.Value, error) {
	data, err := p.caller.ReadPrivate(v.From, MaxVariable)
	if err != nil {
		return secret.Value{}, err
	}
	value, err := OneValue(v.From, data)
	return secret.New(value), err
}
