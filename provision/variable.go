package provision

import (
	"bytes"

	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/manifest"
)

// Sources of a variable's value in addition to those of a manifest.
const (
	SourceArgument   = "command line"    // -e NAME=VALUE
	SourceEnvFile    = "env file"        // --env-file
	SourceDescriptor = "file descriptor" // --env-from-fd
	SourceLogin      = "login"           // stored by bottle login; From is the file
	SourceLoginFile  = "login file"      // of a program, not a variable; From is the file
)

// Variable is one variable of an agent's environment.
type Variable struct {
	Name string `json:"name"`
	// Source is where the value comes from: one of the Source constants of this
	// package or of manifest. From names the caller's variable, or the file.
	Source string `json:"source"`
	From   string `json:"from,omitempty"`
	// Ask is the question of a "prompt" variable.
	Ask string `json:"ask,omitempty"`
	// Command prints the value of a "command" variable.
	Command []string `json:"command,omitempty"`
	// TTL is for how many seconds the value of Command is valid, unless it says so itself;
	// 0: it does not expire.
	TTL int64 `json:"ttl_seconds,omitempty"`
	// Literal is the value of a literal. It is written in the manifest and not a secret.
	Literal string `json:"literal,omitempty"`
	// Secret is the value of any other source.
	Secret secret.Value `json:"-"`
	// Inject are the hosts, with ports, whose requests get the value; the agent gets a
	// placeholder. Empty: the agent gets the value. As are the parts of the requests.
	Inject []string `json:"inject,omitempty"`
	As     []string `json:"as,omitempty"`
	// InjectKind: Inject is the default of the agent's kind.
	InjectKind bool `json:"inject_kind,omitempty"`
}

// IsSecret reports whether the value must not be stored, which holds for all but literals.
func (v Variable) IsSecret() bool { return v.Source != manifest.SourceLiteral }

// value returns the value, secret or not.
func (v Variable) value() string {
	if v.IsSecret() {
		return v.Secret.Reveal()
	}
	return v.Literal
}

// EnvFile encodes variables for the guest program: NAME=VALUE and a NUL for each,
// which no variable can contain (environ(7)).
func EnvFile(vars []Variable) []byte {
	var buf bytes.Buffer
	for _, v := range vars {
		buf.WriteString(v.Name + "=" + v.value() + "\x00")
	}
	return buf.Bytes()
}
