package agents

import "slices"

// MCP is where and how a kind configures its servers of the Model Context Protocol.
type MCP struct {
	// Path, Moved and Format are those of a File.
	Path   string `yaml:"path"`
	Moved  string `yaml:"moved"`
	Format string `yaml:"format"`
	// Key is that of the table of servers, by name.
	Key string `yaml:"key"`
	// Local is the entry of a server that the agent starts: "{command}" is replaced by its
	// program, "{args}" by the list of its arguments, "{argv}" by both in one list, and
	// "{env}" by its variables; a key with "{env}" is omitted if there are none. Remote is
	// the entry of a server on a host: "{url}" is its address.
	Local  map[string]any `yaml:"local"`
	Remote map[string]any `yaml:"remote"`
}

// Server is an MCP server of an agent. Either Command or URL is set.
type Server struct {
	Name    string            `json:"name"`
	Command []string          `json:"command,omitempty"` // program and arguments
	Env     map[string]string `json:"env,omitempty"`
	URL     string            `json:"url,omitempty"` // http or https
}

// Entry is a setting that replaces the one that a file has, where other tables are merged.
type Entry map[string]any

// File returns the file that configures servers.
func (m *MCP) File(servers []Server) File {
	table := map[string]any{}
	for _, s := range servers {
		table[s.Name] = m.entry(s)
	}
	return File{Path: m.Path, Moved: m.Moved, Format: m.Format, Set: map[string]any{m.Key: table}}
}

func (m *MCP) entry(s Server) Entry {
	form := m.Local
	if s.URL != "" {
		form = m.Remote
	}
	out := Entry{}
	for key, value := range form {
		switch value {
		case "{command}":
			value = s.Command[0]
		case "{args}":
			value = slices.Concat([]string{}, s.Command[1:])
		case "{argv}":
			value = s.Command
		case "{env}":
			if len(s.Env) == 0 {
				continue
			}
			value = s.Env
		case "{url}":
			value = s.URL
		}
		out[key] = value
	}
	return out
}
