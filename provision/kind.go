package provision

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/bot-bottle/bottle/agents"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/rootfile"
)

// kind returns the agent's kind.
func (a Agent) kind() *agents.Kind {
	if a.Kind == nil {
		return agents.Get(agents.Default)
	}
	return a.Kind
}

// place resolves a path of the agent's kind.
func (a Agent) place(img Image, home, written string) string {
	return a.kind().Place(written, home, a.moved(img))
}

// moved returns the value of the variable that moves the agent's configuration; empty
// if it is not set.
func (a Agent) moved(img Image) string {
	if v := a.kind().Config.Variable; v != "" {
		if dir, ok := a.setting(img, v); ok {
			return dir
		}
	}
	return ""
}

// kindEnv returns the defaults of the agent's variables, NAME=VALUE, sorted by name.
func (a Agent) kindEnv(uid uint32) []string {
	k := a.kind()
	env := maps.Clone(k.Env)
	if env == nil {
		env = map[string]string{}
	}
	if uid == 0 {
		maps.Copy(env, k.RootEnv)
	}
	maps.Copy(env, k.Mode(a.Unattended).Env)
	if given := k.Given(a.has); len(given) > 0 {
		maps.Copy(env, given[0].Env)
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(env)) {
		out = append(out, name+"="+env[name])
	}
	return out
}

// kindFiles edit the agent's configuration, so that it starts with its prompt: they
// answer its first questions, such as whether it trusts the working directory. Other
// settings in the image's files do not change.
func (a Agent) kindFiles(img Image, home string) []rootfile.File {
	k := a.kind()
	var out []rootfile.File
	files := slices.Concat(k.Files, k.Mode(a.Unattended).Files)
	if given := k.Given(a.has); len(given) > 0 {
		files = append(files, given[0].Files...)
	}
	if len(a.MCP) > 0 && k.MCP != nil {
		files = append(files, k.MCP.File(serversIn(a.MCP, img.WorkDir)))
	}
	for _, f := range files {
		written := f.Path
		if a.moved(img) != "" && f.Moved != "" {
			written = f.Moved
		}
		set := inWorkDir(f.Set, img.WorkDir).(map[string]any)
		edit := func(old []byte) ([]byte, error) { return mergeJSON(old, f.Keep, set) }
		if f.Format == agents.TOML {
			edit = func(old []byte) ([]byte, error) { return mergeTOML(old, f.Keep, set) }
		}
		p := a.place(img, home, written)
		if i := slices.IndexFunc(out, func(o rootfile.File) bool { return o.Path == p }); i >= 0 {
			first := out[i].Edit
			out[i].Edit = func(old []byte) ([]byte, error) {
				data, err := first(old)
				if err != nil {
					return nil, err
				}
				return edit(data)
			}
			continue
		}
		out = append(out, rootfile.File{Path: p, Mode: 0o600, Edit: edit})
	}
	if k.Prompt.File != "" && a.Prompt != "" {
		out = append(out, rootfile.File{Path: a.place(img, home, k.Prompt.File), Mode: fs.ModeSymlink, Link: PromptFile})
	}
	return out
}

// inWorkDir replaces {workdir} in the keys and values of settings.
func inWorkDir(value any, dir string) any {
	switch v := value.(type) {
	case map[string]any:
		out := map[string]any{}
		for key, inner := range v {
			out[strings.ReplaceAll(key, "{workdir}", dir)] = inWorkDir(inner, dir)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, inner := range v {
			out[i] = inWorkDir(inner, dir)
		}
		return out
	case string:
		return strings.ReplaceAll(v, "{workdir}", dir)
	}
	return value
}

// serversIn replaces {workdir} in the commands, variables and addresses of MCP servers.
func serversIn(servers []agents.Server, dir string) []agents.Server {
	in := strings.NewReplacer("{workdir}", dir)
	var out []agents.Server
	for _, s := range servers {
		s.Command, s.Env, s.URL = slices.Clone(s.Command), maps.Clone(s.Env), in.Replace(s.URL)
		for i, arg := range s.Command {
			s.Command[i] = in.Replace(arg)
		}
		for name, value := range s.Env {
			s.Env[name] = in.Replace(value)
		}
		out = append(out, s)
	}
	return out
}

// mergeJSON sets keys of an object and of its nested objects. Other keys keep their
// values; with keep, so do the given keys that already have one.
func mergeJSON(old []byte, keep bool, set map[string]any) ([]byte, error) {
	object := map[string]json.RawMessage{}
	if len(bytes.TrimSpace(old)) > 0 {
		if err := json.Unmarshal(old, &object); err != nil {
			return nil, &hint.Error{Err: fmt.Errorf("invalid JSON object in the image's file: %w", err), Hint: "fix it in the image"}
		}
	}
	if object == nil { // it was null
		object = map[string]json.RawMessage{}
	}
	for key, value := range set {
		var err error
		inner, nested := value.(map[string]any)
		switch {
		case nested:
			object[key], err = mergeJSON(object[key], keep, inner)
		case !keep || object[key] == nil:
			object[key], err = json.Marshal(value)
		}
		if err != nil {
			return nil, err
		}
	}
	return json.MarshalIndent(object, "", "  ")
}

// mergeTOML does the same with the tables of a TOML file. Its comments are lost.
func mergeTOML(old []byte, keep bool, set map[string]any) ([]byte, error) {
	table := map[string]any{}
	if err := toml.Unmarshal(old, &table); err != nil {
		return nil, &hint.Error{Err: fmt.Errorf("invalid TOML in the image's file: %w", err), Hint: "fix it in the image"}
	}
	if err := mergeTable(table, keep, set); err != nil {
		return nil, err
	}
	return toml.Marshal(table)
}

func mergeTable(table map[string]any, keep bool, set map[string]any) error {
	for key, value := range set {
		inner, nested := value.(map[string]any)
		old, exists := table[key]
		switch {
		case nested && !exists:
			table[key] = inner
		case nested:
			of, ok := old.(map[string]any)
			if !ok {
				return &hint.Error{Err: fmt.Errorf("%s in the image's file is not a table", key), Hint: "fix it in the image"}
			}
			if err := mergeTable(of, keep, inner); err != nil {
				return err
			}
		case !keep || !exists:
			table[key] = value
		}
	}
	return nil
}

// SkillsDir returns the directory of the skills of a kind on the host, below the user's
// home; false if the kind has no skills.
func SkillsDir(k *agents.Kind, home string) (string, bool) {
	if k.Skills == "" {
		return "", false
	}
	return filepath.Clean(k.Place(k.Skills, home, "")), true
}
