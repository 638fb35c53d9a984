package manifest

import (
	_ "embed"
	"fmt"
	"path/filepath"

	"github.com/bot-bottle/bottle/agents"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/imageref"
)

// Description is an agent and its bottle as configured in the manifest, with defaults
// filled in and absolute paths. It is computed without the host, files or variables, and
// contains no values of variables.
type Description struct {
	Agent        string            `json:"agent"`
	Kind         string            `json:"kind,omitempty"`
	KindHosts    []string          `json:"kind_hosts,omitempty"` // those that the kind adds to the policy
	Unattended   bool              `json:"unattended,omitempty"`
	Bottle       string            `json:"bottle"`
	Image        string            `json:"image"` // normalised
	Build        *BuildDescription `json:"build,omitempty"`
	Command      []string          `json:"command"`          // empty: the image's
	Env          []EnvDescription  `json:"env"`              // in the order of the manifest, without values
	Logins       []string          `json:"logins,omitempty"` // files with logins, by their formats
	Egress       Egress            `json:"egress"`
	SSH          []SSHHost         `json:"ssh"`
	Git          *Git              `json:"git,omitempty"`
	Limits       Limits            `json:"limits"`
	PromptBytes  int               `json:"prompt_bytes"`
	Skills       []string          `json:"skills"`
	MCP          []agents.Server   `json:"mcp,omitempty"`
	Pool         int               `json:"pool,omitempty"` // bottles that are kept prepared
	Warm         bool              `json:"warm,omitempty"` // with the agent started in them
	ManifestPath string            `json:"manifest"`
}

// EnvDescription is a variable without its value.
type EnvDescription struct {
	Name   string `json:"name"`
	Source string `json:"source"`         // one of the Source constants
	From   string `json:"from,omitempty"` // the caller's variable, or the file
	Ask    string `json:"ask,omitempty"`  // the question of a "prompt" variable
	// Command is that of a "command" variable.
	Command []string `json:"command,omitempty"`
	// TTL is after how many seconds the command is run again, at the latest; 0: never.
	TTL int64 `json:"ttl_seconds,omitempty"`
	// Inject are the hosts whose requests get the value, and As the parts of these
	// requests; empty: the agent gets the value.
	Inject []string `json:"inject,omitempty"`
	As     []string `json:"as,omitempty"`
}

// Sources of variables in a manifest. Only the value of a literal may be stored.
const (
	SourceLiteral   = "literal"   // written in the manifest
	SourceForwarded = "forwarded" // a variable of the caller
	SourcePrompt    = "prompt"    // asked at launch
	SourceFile      = "file"      // a file of the caller
	SourceCommand   = "command"   // printed by a command at launch
)

// BuildDescription is a build without the values of its arguments.
type BuildDescription struct {
	Context    string   `json:"context"`    // absolute
	Dockerfile string   `json:"dockerfile"` // as written; empty: Dockerfile
	Target     string   `json:"target,omitempty"`
	Args       []string `json:"args"`    // names
	Secrets    []string `json:"secrets"` // names
	// HostNetwork: steps use the host's network. Allow is what they reach otherwise; nil:
	// all public hosts.
	HostNetwork bool     `json:"host_network,omitempty"`
	Allow       []string `json:"allow,omitempty"`
}

// Describe returns the description of one agent or, without a name, of all agents sorted
// by name.
func (m *Manifest) Describe(agent string, c caller.Caller) ([]Description, error) {
	names := sortedKeys(m.Agents)
	if agent != "" {
		names = []string{agent}
	}
	out := []Description{}
	for _, name := range names {
		a, b, err := m.Lookup(name)
		if err != nil {
			return nil, err
		}
		d, err := m.describe(name, a, b, c)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

func (m *Manifest) describe(name string, a *Agent, b *Bottle, c caller.Caller) (Description, error) {
	dir := filepath.Dir(m.Path)
	image := b.Image
	policy, kindHosts := a.Egress(b, nil)
	kind := a.KindOf()
	if image == "" {
		image = kind.DefaultImage()
	}
	ref, err := imageref.Normalize(image)
	if err != nil {
		return Description{}, fmt.Errorf("image %q of bottle %q: %w", image, a.Bottle, err)
	}
	d := Description{
		Agent: name, Bottle: a.Bottle, ManifestPath: m.Path, Image: ref, Git: b.Git, Logins: b.Logins, PromptBytes: len(a.Prompt),
		Kind: a.Kind, KindHosts: kindHosts, Unattended: a.Unattended, Pool: a.Pool, Warm: a.Warm,
		Command: append([]string{}, kind.InMode(a.CommandOfKind(), a.Unattended)...), Skills: append([]string{}, a.Skills...), MCP: a.MCP, SSH: []SSHHost{}, Env: []EnvDescription{},
		Egress: policy.Expand(),
		Limits: b.Limits.OrDefault(),
	}
	for _, v := range b.Env {
		d.Env = append(d.Env, v.describe(c, dir))
	}
	for _, h := range b.SSH {
		if h.IdentityFile != "" {
			h.IdentityFile = c.Path(h.IdentityFile, dir)
		}
		d.SSH = append(d.SSH, h)
	}
	if s := b.Build; s != nil {
		d.Build = &BuildDescription{
			HostNetwork: s.HostNetwork, Allow: s.Allow,
			Context: c.Path(s.Context, dir), Dockerfile: s.Dockerfile, Target: s.Target,
			Args: sortedKeys(s.Args), Secrets: sortedKeys(s.Secrets),
		}
	}
	return d, nil
}

func (v Variable) describe(c caller.Caller, dir string) EnvDescription {
	d := v.describeSource(c, dir)
	if v.Inject != nil {
		d.Inject, d.As = v.Inject.Hosts, v.Inject.As
	}
	return d
}

func (v Variable) describeSource(c caller.Caller, dir string) EnvDescription {
	switch {
	case v.Literal != nil:
		return EnvDescription{Name: v.Name, Source: SourceLiteral}
	case v.Prompt != "":
		return EnvDescription{Name: v.Name, Source: SourcePrompt, Ask: v.Prompt}
	case len(v.Command) > 0:
		return EnvDescription{Name: v.Name, Source: SourceCommand, Command: v.Command, TTL: int64(v.TTL.Seconds())}
	case v.File != "":
		return EnvDescription{Name: v.Name, Source: SourceFile, From: c.Path(v.File, dir)}
	}
	return EnvDescription{Name: v.Name, Source: SourceForwarded, From: v.From}
}

// OrDefault returns the limits with defaults for those that are not set.
func (l Limits) OrDefault() Limits {
	if l.Memory == 0 {
		l.Memory = defaultMemory
	}
	if l.Pids == 0 {
		l.Pids = defaultPids
	}
	if l.Disk == 0 {
		l.Disk = defaultDisk
	}
	if l.Workspace == 0 {
		l.Workspace = defaultWorkspace
	}
	return l
}
