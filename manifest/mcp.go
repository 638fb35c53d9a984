package manifest

import (
	"net/url"

	"go.yaml.in/yaml/v4"

	"github.com/bot-bottle/bottle/agents"
)

// servers reads MCP servers by name.
func (d *decoder) servers(n *yaml.Node) []agents.Server {
	var out []agents.Server
	d.entries(n, "mcp", func(key, value *yaml.Node) {
		if key.Value == "" || !printable(key.Value) {
			d.fail(key, "", "invalid name of an MCP server: empty, or contains an invisible character")
			return
		}
		if s, ok := d.server(key, value); ok {
			out = append(out, s)
		}
	})
	return out
}

func (d *decoder) server(key, n *yaml.Node) (agents.Server, bool) {
	s, before := agents.Server{Name: key.Value}, len(d.problems)
	what := "MCP server " + quoted(key.Value)
	d.mapping(n, what, map[string]func(*yaml.Node){
		"command": func(n *yaml.Node) {
			d.items(n, "command", func(item *yaml.Node) {
				if arg, ok := d.text(item, "command argument", true); ok {
					s.Command = append(s.Command, arg)
				}
			})
			if len(d.problems) == before && (len(s.Command) == 0 || s.Command[0] == "") {
				d.fail(n, "name the program, such as [node, server.js]", "invalid command: empty")
			}
		},
		"env": func(n *yaml.Node) {
			s.Env = map[string]string{}
			d.entries(n, "env", func(key, value *yaml.Node) {
				if !ValidEnvName(key.Value) {
					d.fail(key, EnvNameHint, "invalid variable name %s", shown(key.Value))
					return
				}
				s.Env[key.Value], _ = d.text(value, key.Value, true)
			})
		},
		"url": func(n *yaml.Node) { s.URL = d.url(n) },
	})
	if len(d.problems) > before {
		return s, false
	}
	switch {
	case len(s.Command) == 0 && s.URL == "":
		d.fail(key, "add command: with its program and arguments, or url: with its address", "missing command or url in %s", what)
	case len(s.Command) > 0 && s.URL != "":
		d.fail(key, "remove one of them", "unexpected url in %s, which has a command", what)
	case s.URL != "" && s.Env != nil:
		d.fail(key, "remove env", "unexpected env in %s, which has a url", what)
	}
	return s, len(d.problems) == before
}

// url reads the address of a server. It has no credentials, which would be stored in a file of
// the agent's.
func (d *decoder) url(n *yaml.Node) string {
	s, ok := d.name(n, "url")
	if !ok {
		return ""
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		d.fail(n, "", "invalid url: expected one such as https://host/mcp")
		return ""
	}
	if u.User != nil {
		d.fail(n, "remove the text before the @", "invalid url: contains credentials")
		return ""
	}
	return s
}
