// Package loginfile reads the files in which programs store their logins, and writes them
// with other values in place of the secrets. What is written has only the fields that are
// known: a file can contain more secrets than those that are looked for.
package loginfile

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/secret"
)

// Format is a program's file of logins.
type Format struct {
	Name string
	// Path is where the program has the file, below the home. Variable moves it: its value
	// is the file's path, or with Dir that of its directory.
	Path     string
	Variable string
	Dir      bool
	// Get says how the user gets the file.
	Get   string
	parse func(data []byte) (*File, error)
}

// formats are sorted by name.
var formats = []Format{
	{Name: "claude", Path: ".claude/.credentials.json", Variable: "CLAUDE_CONFIG_DIR", Dir: true, Get: "log in with claude", parse: parseClaude},
	{Name: "docker", Path: ".docker/config.json", Variable: "DOCKER_CONFIG", Dir: true, Get: "log in with docker login, without a credential helper", parse: parseDocker},
	{Name: "gh", Path: ".config/gh/hosts.yml", Variable: "GH_CONFIG_DIR", Dir: true, Get: "log in with gh auth login --insecure-storage", parse: parseGH},
	{Name: "netrc", Path: ".netrc", Variable: "NETRC", Get: "write it as curl and pip read it", parse: parseNetrc},
	{Name: "npm", Path: ".npmrc", Variable: "NPM_CONFIG_USERCONFIG", Get: "log in with npm login", parse: parseNPM},
}

// Names returns the names of all formats.
func Names() []string {
	var out []string
	for _, f := range formats {
		out = append(out, f.Name)
	}
	return out
}

// Get returns a format by its name.
func Get(name string) (Format, bool) {
	i := slices.IndexFunc(formats, func(f Format) bool { return f.Name == name })
	if i < 0 {
		return Format{}, false
	}
	return formats[i], true
}

// Secret is a secret in a file.
type Secret struct {
	Name  string // in all files of the format, such as "gh:github.com"
	Value secret.Value
	Hosts []string // that it is sent to, each with an optional port
}

// File is what was read.
type File struct {
	Secrets []Secret
	write   func(values map[string]string) ([]byte, error)
}

// Write returns the file with other values for some of its secrets, by their names. The
// other secrets, and what belongs to them, are left out.
func (f *File) Write(values map[string]string) ([]byte, error) { return f.write(values) }

// Parse reads a file. Errors contain nothing of it.
func (f Format) Parse(data []byte) (*File, error) {
	out, err := f.parse(data)
	if err != nil {
		return nil, err
	}
	out.Secrets = slices.DeleteFunc(out.Secrets, func(s Secret) bool { return s.Value.Reveal() == "" })
	if len(out.Secrets) == 0 {
		return nil, &hint.Error{Err: errors.New("no login in the file that can be used"), Hint: f.Get}
	}
	slices.SortFunc(out.Secrets, func(a, b Secret) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

var errForm = errors.New("unknown form of the file")

// add adds a secret for a host of the format.
func (f *File) add(format, host, value string, hosts ...string) {
	f.Secrets = append(f.Secrets, Secret{Name: nameOf(format, host), Value: secret.New(value), Hosts: hosts})
}

func nameOf(format, host string) string { return fmt.Sprintf("%s:%s", format, host) }
