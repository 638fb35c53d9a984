package plan

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/provision"
)

// EnvArg is a variable that a command line gives, in whatever way.
type EnvArg struct {
	Name  string
	Value *secret.Value // nil: the caller's variable of that name is forwarded
	// Source is one of the Source constants, From the file or descriptor; both
	// are for the plan.
	Source, From string
	where        string // for messages
}

// parseEnvFlag reads -e NAME or -e NAME=VALUE.
func parseEnvFlag(kv string) EnvArg {
	a := EnvArg{Source: provision.SourceArgument, where: "-e"}
	name, value, given := strings.Cut(kv, "=")
	a.Name = name
	if given {
		a.Value = secretPointer(value)
	}
	return a
}

func secretPointer(value string) *secret.Value {
	s := secret.New(value)
	return &s
}

// ParseEnvFile reads variables in one of two formats. With a NUL byte anywhere
// each entry, NAME=VALUE or NAME, ends with one, as `env -0` writes them: values
// may hold line breaks. Else the text is docker's: an entry a line, blank lines
// and lines that begin with # left out, and values as they are, quotes too.
// source is provision.SourceEnvFile or provision.SourceDescriptor, from its path or number.
func ParseEnvFile(source, from string, data []byte) ([]EnvArg, error) {
	lines, unit := envLines(data), "line"
	if bytes.IndexByte(data, 0) >= 0 {
		lines, unit = bytes.Split(bytes.TrimSuffix(data, []byte{0}), []byte{0}), "entry"
	}
	var out []EnvArg
	var problems hint.Problems
	for i, line := range lines {
		if unit == "line" && !utf8.Valid(line) {
			problems.Add(fmt.Errorf("%s %s, line %d: this is not UTF-8: end each entry with a NUL byte to pass other bytes", source, from, i+1))
			continue
		}
		if len(line) == 0 || unit == "line" && line[0] == '#' {
			continue
		}
		a := parseEnvFlag(string(line))
		a.Source, a.From, a.where = source, from, fmt.Sprintf("%s %s, %s %d", source, from, unit, i+1)
		if err := a.check(); err != nil {
			problems.Add(err)
			continue
		}
		out = append(out, a)
	}
	return out, problems.Err()
}

// envLines are a text's lines as docker has them: a byte order mark, white space
// before the name and a carriage return at the end are left out.
func envLines(data []byte) [][]byte {
	lines := bytes.Split(bytes.TrimPrefix(data, manifest.ByteOrderMark), []byte("\n"))
	for i, line := range lines {
		lines[i] = bytes.TrimLeft(bytes.TrimSuffix(line, []byte("\r")), " \t")
	}
	return lines
}

// check reports whether the name can be a variable's that is not bottle's own. A
// name that is none may be a piece of a value: it is not shown then, but for
// what was typed.
func (a EnvArg) check() error {
	switch {
	case !manifest.ValidEnvName(a.Name) && a.where == "-e":
		return fmt.Errorf("-e: invalid variable name %q: letters, digits and _ only, and no digit first", a.Name)
	case !manifest.ValidEnvName(a.Name):
		return fmt.Errorf("%s: invalid variable name before =: letters, digits and _ only, and no digit first (a value that spans lines needs entries that end with a NUL byte)", a.where)
	case manifest.ReservedEnvName(a.Name):
		return fmt.Errorf("%s: %s is bottle's own, as the agent reaches the network through the proxy alone: leave it out", a.where, a.Name)
	}
	return nil
}

// ResolveEnv looks up the variables of a session of its own: those of files,
// then -e, where a later one of the same name holds. The error is Problems when
// there is more than one.
func ResolveEnv(c caller.Caller, files []EnvArg, flags []string) ([]provision.Variable, error) {
	r := &envResolver{caller: c}
	return r.resolve(nil, files, flags, false)
}
