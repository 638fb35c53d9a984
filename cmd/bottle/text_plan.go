package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/bot-bottle/bottle/agents"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/provision"
)

const (
	textKind       = "%s (%s)"
	textUnattended = "the agent acts without asking"
	textRenewed    = "renewed in the file before it ends"
	textInject     = "placeholder, inserted for %s"
)

// showPlan prints the plan: as text on standard error, because standard output
// belongs to the agent, or as JSON on standard output.
func (a *app) showPlan(p *plan.Plan, manifest *approval, asJSON bool) error {
	if asJSON {
		return a.printJSON(struct {
			*plan.Plan
			Approval approvalStatus `json:"manifest_approval"`
		}{p, manifest.status()})
	}
	return printPlan(a.stderr, p, approvalText(manifest))
}

// printPlan prints a plan, and what is known of its manifest's approval.
func printPlan(w io.Writer, p *plan.Plan, approval string) error {
	t := tabwriter.NewWriter(wrapped(w), 0, 0, 2, ' ', 0)
	// The manifest may be untrusted: no control character may hide a part of the plan.
	row := func(name, value string) { _, _ = fmt.Fprintf(t, "  %s\t%s\n", name, visible(value)) }
	_, _ = fmt.Fprintf(t, "bottle %s\n", names.Bare(p.Name))
	row("agent", fmt.Sprintf("%s: %s", p.Agent, planCommand(p)))
	kindRows(row, p.Kind, p.KindHosts, p.Unattended)
	if p.Kind != "" {
		row("login", orNone(nonEmpty(p.Login)))
	}
	row("bottle", fmt.Sprintf("%s (%s)", p.Bottle, p.Manifest))
	row("manifest", approval)
	row("image", image(p))
	if p.Build != nil {
		row("build", plannedBuild(p.Build))
		if len(p.Build.Args) > 0 {
			row("build arguments", strings.Join(assignments(p.Build.Args), ", "))
		}
		if len(p.Build.Secrets) > 0 {
			row("build secrets", strings.Join(buildSecretSources(p.Build.Secrets), ", "))
		}
	}
	row("runtime", p.Runtime)
	row("network", fmt.Sprintf("internal %s to the proxy only; proxy on %s (%s)", p.Network.Internal, p.Network.Bridge, p.Network.Egress))
	row("host changes", orNone(p.Network.Changes))
	row("proxy", proxyText(p.Proxy))
	policyRows(row, p.Egress)
	row("variables", orNone(plannedVariables(p)))
	loginFileRow(row, p.Logins)
	if questions := p.Questions(); len(questions) > 0 {
		row("questions", strings.Join(questionTexts(questions), ", "))
	}
	row("prompt", prompt(p.PromptBytes))
	row("skills", orNone(p.Skills))
	mcpRow(row, p.MCP)
	sshRows(row, p.SSH)
	if p.Git != nil {
		row("git", fmt.Sprintf("%s <%s>", p.Git.Name, p.Git.Email))
	}
	row("limits", limits(p.Limits))
	if p.Prepared != nil {
		row("prepared", preparedText(p))
	}
	if p.Workspace != nil {
		ignored := ""
		if p.CwdIgnored {
			ignored = ", with files that git ignores"
		}
		if p.Workspace.Existing {
			row("workspace", fmt.Sprintf("the existing copy of %s at %s, up to %s, kept at the end", p.Dir, p.Target, size(p.Workspace.Size)))
		} else {
			row("workspace", fmt.Sprintf("copy of %s at %s%s, up to %s, kept at the end", p.Dir, p.Target, ignored, size(p.Workspace.Size)))
		}
	}
	if p.Policy != nil {
		row("policy", policyText(p.Policy))
	}
	for _, warning := range p.Warnings {
		row("WARNING", warning)
	}
	return t.Flush()
}

// loginFileRow shows the files with logins of which the agent gets copies.
func loginFileRow(row func(name, value string), logins []provision.Login) {
	var out []string
	for _, l := range logins {
		for _, s := range l.Secrets {
			text := injectText(s.Inject, s.As)
			if l.Renewed {
				text += "; " + textRenewed
			}
			out = append(out, fmt.Sprintf("%s (from %s; %s)", s.Name, s.From, text))
		}
	}
	if len(out) > 0 {
		row("logins", strings.Join(out, ", "))
	}
}

// mcpRow shows an agent's MCP servers with the values of their variables, which are the manifest's.
func mcpRow(row func(name, value string), servers []agents.Server) {
	var out []string
	for _, s := range servers {
		text := cmp.Or(s.URL, commandLine(s.Command))
		for _, name := range slices.Sorted(maps.Keys(s.Env)) {
			text += fmt.Sprintf("; %s=%q", name, s.Env[name])
		}
		out = append(out, fmt.Sprintf("%s (%s)", s.Name, text))
	}
	if len(out) > 0 {
		row("MCP servers", strings.Join(out, ", "))
	}
}

// kindRows shows what the kind of an agent stands for.
func kindRows(row func(name, value string), kind string, hosts []string, unattended bool) {
	if kind == "" {
		return
	}
	row("kind", fmt.Sprintf(textKind, kind, agents.Get(kind).Title))
	row("hosts of "+kind, orNone(hosts))
	if unattended {
		row("unattended", textUnattended)
	}
}

func nonEmpty(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

// commandLine quotes arguments that could be read as several arguments or as a line
// of the plan.
func commandLine(args []string) string {
	plain := func(r rune) bool {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-_=+./:,@%~^", r)
	}
	out := make([]string, len(args))
	for i, arg := range args {
		out[i] = arg
		if strings.TrimFunc(arg, plain) != "" || arg == "" {
			out[i] = strconv.Quote(arg)
		}
	}
	return strings.Join(out, " ")
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}

func variables(env []manifest.EnvDescription) []string {
	var out []string
	for _, v := range env {
		text := v.Source
		switch {
		case v.Source == manifest.SourceLiteral:
			out = append(out, v.Name)
			continue
		case v.Source == manifest.SourceCommand:
			text = fmt.Sprintf("%s: %s", v.Source, commandLine(v.Command))
			if v.TTL > 0 {
				text += fmt.Sprintf(textRunAgain, ttlText(v.TTL))
			}
		case v.From != "" && v.From != v.Name:
			text = fmt.Sprintf("%s from %s", v.Source, v.From)
		}
		if len(v.Inject) > 0 {
			text += "; " + injectText(v.Inject, v.As)
		}
		out = append(out, fmt.Sprintf("%s (%s)", v.Name, text))
	}
	return out
}

// ttlText formats seconds as a manifest does: 50m or 12h.
func ttlText(seconds int64) string {
	text := strings.TrimSuffix((time.Duration(seconds) * time.Second).String(), "0s")
	if strings.Contains(text, "h") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// injectText describes where a secret that the agent does not get is inserted.
func injectText(hosts, as []string) string {
	text := fmt.Sprintf(textInject, strings.Join(hosts, ", "))
	if len(as) > 0 {
		text += " as " + strings.Join(as, ", ")
	}
	return text
}

// plannedVariables lists the variables, and the pipes that are not read yet.
func plannedVariables(p *plan.Plan) []string {
	out := plannedEnv(p.Env)
	for _, path := range p.EnvPipes {
		out = append(out, fmt.Sprintf("those of %s (read when the run starts)", path))
	}
	return out
}

// plannedEnv describes variables by their sources, and literals by their values.
func plannedEnv(env []provision.Variable) []string {
	var out []string
	for _, v := range env {
		if v.Source == manifest.SourceLiteral {
			out = append(out, v.Name+"="+quoteShort(v.Literal))
			continue
		}
		out = append(out, variables([]manifest.EnvDescription{{
			Name: v.Name, Source: v.Source, From: v.From, Command: v.Command, TTL: v.TTL, Inject: v.Inject, As: v.As,
		}})...)
	}
	return out
}

// assignments formats variables with their values, sorted by name.
func assignments(vars map[string]string) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		out = append(out, name+"="+quoteShort(vars[name]))
	}
	return out
}

// maxQuoted is how many characters quoteShort shows.
const maxQuoted = 60

// quoteShort quotes the beginning of a text.
func quoteShort(s string) string {
	if r := []rune(s); len(r) > maxQuoted {
		return fmt.Sprintf("%q… (%d bytes)", string(r[:maxQuoted]), len(s))
	}
	return strconv.Quote(s)
}

// questionTexts describes what will be asked before the launch.
func questionTexts(questions []plan.Question) []string {
	out := make([]string, len(questions))
	for i, q := range questions {
		out[i] = questionText(q)
	}
	return out
}

// questionText marks the words of a manifest as such: it may be someone else's, and
// ask for what only looks like a question of bottle's.
func questionText(q plan.Question) string {
	if q.KeyFile != "" {
		return fmt.Sprintf(textPassphrase, q.KeyFile)
	}
	return fmt.Sprintf(textAsks, q.Variable, q.Ask)
}

func prompt(bytes int) string {
	if bytes == 0 {
		return "none"
	}
	return fmt.Sprintf("%d bytes", bytes)
}

// sshRows shows each entry of ssh in a row of its own.
func sshRows(row func(name, value string), hosts []manifest.SSHHost) {
	if len(hosts) == 0 {
		row("ssh hosts", orNone(nil))
	}
	for _, h := range hosts {
		key := "no key"
		switch {
		case h.IdentityFile == "" && h.Keys == nil:
			key = "signs with the keys of your ssh agent, if one is running" // not queried yet
		case h.Mode == manifest.SSHCopy:
			key = "key " + h.IdentityFile + ", copied into the bottle"
		case h.IdentityFile != "":
			key = "signs with " + h.IdentityFile
		case len(h.Keys) > 0:
			key = fmt.Sprintf("signs with %s of your ssh agent", count(len(h.Keys), "key"))
		}
		switch {
		case h.PubkeyAuthentication == manifest.PubkeyUnbound:
			key += ", unbound"
		case h.Forge != "":
			key += ", unbound with the host keys of " + h.Forge
		}
		user, hostKey := "any user", "host key from known_hosts"
		if h.User != "" {
			user = "user " + h.User
		}
		if fingerprint := h.HostKeyFingerprint(); fingerprint != "" {
			hostKey = "host key " + fingerprint + " from the manifest"
		}
		row("ssh host", fmt.Sprintf("%s: %s, %s, %s, %s", h.Host, h.Destination(), user, hostKey, key))
	}
}

func limits(l manifest.Limits) string {
	s := fmt.Sprintf("memory %s, disk %s, workspace %s, %d processes", size(l.Memory), size(l.Disk), size(l.Workspace), l.Pids)
	if l.CPUs > 0 {
		s += fmt.Sprintf(", %g CPUs", l.CPUs)
	}
	return s
}
