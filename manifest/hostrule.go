package manifest

import (
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/egress/hostrule"
	"github.com/bot-bottle/bottle/internal/hint"
	"go.yaml.in/yaml/v4"
)

// Hints about entries of allow that say more than a host.
const (
	hostRuleHint  = `such as {host: api.example.com, methods: [GET], paths: ["/v1/**"]} or {host: example.com, git: read, repos: [me/x]}`
	emptyListHint = "leave it out to permit all"
	narrowedHint  = "remove one of them: the entry without rules would allow every request to the host"
)

// allow reads egress.allow, whose entries are hosts, or mappings of a host and its rules.
func (d *decoder) allow(n *yaml.Node, out *Egress) {
	type plain struct {
		node *yaml.Node
		text string
	}
	var hosts []plain
	d.items(n, "allow", func(item *yaml.Node) {
		if d.follow(item).Kind == yaml.MappingNode {
			if r, ok := d.hostRule(item); ok {
				out.Rules = append(out.Rules, r)
			}
			return
		}
		if s, ok := d.rule(item, "allow"); ok {
			hosts = append(hosts, plain{item, s})
		}
	})
	for _, h := range hosts {
		if len(egress.WithoutNarrowed([]string{h.text}, out.Rules)) == 0 {
			d.fail(h.node, narrowedHint, "conflicting allow entry %s: another entry has rules for this host", quoted(h.text))
		}
		out.Allow = append(out.Allow, h.text)
	}
}

// hostRule reads an entry of allow with rules.
func (d *decoder) hostRule(n *yaml.Node) (hostrule.Rule, bool) {
	var r hostrule.Rule
	before := len(d.problems)
	d.mapping(n, "allow entry", map[string]func(*yaml.Node){
		"host":    func(n *yaml.Node) { r.Host = d.ruleHost(n) },
		"methods": func(n *yaml.Node) { r.Methods = d.ruleList(n, "methods", hostrule.CheckMethod) },
		"paths":   func(n *yaml.Node) { r.Paths = d.ruleList(n, "paths", hostrule.CheckPath) },
		"upgrade": func(n *yaml.Node) { r.Upgrade = d.boolean(n, "upgrade") },
		"git":     func(n *yaml.Node) { r.Git = d.oneOf(n, "git", hostrule.GitRead, hostrule.GitWrite) },
		"repos":   func(n *yaml.Node) { r.Repos = d.ruleList(n, "repos", hostrule.CheckRepo) },
		"push":    func(n *yaml.Node) { r.Push = d.ruleList(n, "push", hostrule.CheckRef) },
	})
	if len(d.problems) > before {
		return r, false
	}
	if r.Host == "" {
		d.fail(n, hostRuleHint, "missing host of an allow entry")
		return r, false
	}
	if err := r.Check(); err != nil {
		d.fail(n, hostRuleHint, "invalid allow entry: %v", err)
		return r, false
	}
	return r, true
}

func (d *decoder) ruleHost(n *yaml.Node) string {
	s, ok := d.name(n, "host")
	if !ok {
		return ""
	}
	const fix = "expected a DNS name with an optional port, such as api.example.com"
	if strings.Contains(s, "@") {
		// The text before it may be a password, which must not be shown.
		d.fail(n, fix, "invalid host: contains an @")
		return ""
	}
	// Every rule needs a part that says more than the host.
	r, err := egress.ParseHostRule(hostrule.Rule{Host: s, Methods: []string{"GET"}})
	if err != nil {
		d.fail(n, fix, "%v", err)
		return ""
	}
	return r.Host
}

// ruleList reads a list of a rule. An empty one could be meant to permit nothing.
func (d *decoder) ruleList(n *yaml.Node, what string, check func(string) error) []string {
	if target := d.follow(n); target.Kind == yaml.SequenceNode && len(target.Content) == 0 {
		d.fail(n, emptyListHint, "invalid %s: got an empty list", what)
		return nil
	}
	var out []string
	d.items(n, what, func(item *yaml.Node) {
		s, ok := d.name(item, what+" entry")
		if !ok {
			return
		}
		switch err := check(s); {
		case err != nil:
			d.fail(item, hint.Of(err), "%v", err)
		case slices.Contains(out, s):
			d.fail(item, "remove one of them", "duplicate %s entry %s", what, quoted(s))
		default:
			out = append(out, s)
		}
	})
	return out
}
