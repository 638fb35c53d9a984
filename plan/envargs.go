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

// EnvArg is a variable from the command line or from a file named there.
type EnvArg struct {
	Name  string
	Value *secret.Value // nil: the caller's variable of that name is forwarded
	// Source is one of the Source constants, and From the file or descriptor. The
	// plan shows both.
	Source, From string
	where        string // for messages
	// pipe: From is a pipe, and this stands for the variables that it will give.
	pipe bool
}

// PipeArg stands for the variables of a pipe, which Plan.ReadPipes reads: reading a
// pipe consumes what it holds, so it waits until the run is confirmed.
func PipeArg(source, path string) EnvArg { return EnvArg{Source: source, From: path, pipe: true} }

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

func parseEnvFlags(list []string) []EnvArg {
	out := make([]EnvArg, len(list))
	for i, kv := range list {
		out[i] = parseEnvFlag(kv)
	}
	return out
}

func secretPointer(value string) *secret.Value {
	s := secret.New(value)
	return &s
}

// ParseEnvFile parses variables in one of two formats. If the data contain a NUL byte,
// each entry, NAME=VALUE or NAME, ends with one, as `env -0` writes them, and values
// may contain line breaks. Otherwise the format is docker's: one entry per line; blank
// lines and lines that begin with # are ignored; values are literal, including quotes.
// source is provision.SourceEnvFile or provision.SourceDescriptor, and from is its path
// or number.
func ParseEnvFile(source, from string, data []byte) ([]EnvArg, error) {
	lines, unit := envLines(data), "line"
	if bytes.IndexByte(data, 0) >= 0 {
		lines, unit = bytes.Split(bytes.TrimSuffix(data, []byte{0}), []byte{0}), "entry"
	}
	var out []EnvArg
	var problems hint.Problems
	for i, line := range lines {
		if unit == "line" && !utf8.Valid(line) {
			problems.Add(&hint.Error{
				Err:  fmt.Errorf("%s %s, line %d: invalid UTF-8", source, from, i+1),
				Hint: "end each entry with a NUL byte to pass other bytes",
			})
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

// envLines splits a text as docker does: without a byte order mark, white space before
// the name, and a carriage return at the end of a line.
func envLines(data []byte) [][]byte {
	lines := bytes.Split(bytes.TrimPrefix(data, manifest.ByteOrderMark), []byte("\n"))
	for i, line := range lines {
		lines[i] = bytes.TrimLeft(bytes.TrimSuffix(line, []byte("\r")), " \t")
	}
	return lines
}

// check rejects invalid and reserved names. An invalid name in a file may be a part of a
// secret value, so the error does not show it; one that was typed is shown.
func (a EnvArg) check() error {
	switch {
	case !manifest.ValidEnvName(a.Name) && a.where == "-e":
		return &hint.Error{Err: fmt.Errorf("-e: invalid variable name %q", a.Name), Hint: manifest.EnvNameHint}
	case !manifest.ValidEnvName(a.Name):
		return &hint.Error{
			Err:  fmt.Errorf("%s: invalid variable name before =", a.where),
			Hint: manifest.EnvNameHint + "; values with line breaks need entries that end with a NUL byte",
		}
	case manifest.ReservedEnvName(a.Name):
		return &hint.Error{
			Err:  fmt.Errorf("%s: %s is reserved for the address of the egress proxy", a.where, a.Name),
			Hint: "remove it",
		}
	}
	return nil
}

// ResolveEnv reads the variables of an additional session: those of the files, then the
// flags. A later variable overrides an earlier one of the same name. The error is a
// hint.Problems if there is more than one.
func ResolveEnv(c caller.Caller, files []EnvArg, flags []string, readPipe func(path string) ([]EnvArg, error)) ([]provision.Variable, error) {
	in := envInput{caller: c, files: files, flags: parseEnvFlags(flags)}
	if err := in.readPipes(readPipe); err != nil {
		return nil, err
	}
	return in.resolve()
}
