// Package plan resolves a run against the manifest and the host. Prepare turns a Spec
// into a Plan, which names every image, variable, file and host that the run uses. It
// queries the host through the Host interface and changes nothing.
package plan

import (
	"time"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/internal/rootfile"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/provision"
)

// Spec is what one run asks for: the command line and the caller's
// environment, before anything was looked up.
type Spec struct {
	Agent        string   // the agent's name in the manifest
	ManifestPath string   // --manifest; empty: searched for
	Name         string   // --name; empty: CLAUDE_BOTTLE_CONTAINER, else derived from the agent
	Runtime      string   // --runtime; empty: DefaultRuntime
	Proxy        string   // --proxy; empty: the manifest's, else DefaultProxy
	Learn        bool     // --learn: nothing is blocked, and what would be is noted
	Cwd          bool     // --cwd: run on an image that holds the working directory
	CwdTarget    string   // --cwd-target: where it is in that image; empty: DefaultCwdTarget
	CwdForce     bool     // --cwd-force: even a home directory
	Pull         string   // --pull: one of PullPolicies; empty: PullMissing
	Env          []string // -e NAME or NAME=VALUE, in the order given
	EnvFiles     []EnvArg // of --env-file and --env-from-fd, in the order given; Env goes over them
	ForwardToken *bool    // CLAUDE_BOTTLE_OAUTH_TOKEN; nil: if it is set
	Args         []string // after --: appended to the agent's command
	NoInput      bool     // nothing may be asked
	// Caller says who called and from where.
	Caller caller.Caller
}

// Plan is a Spec resolved against the manifest and the host: everything that
// Launch will do, and nothing it has done yet. It is what the preflight
// prints; no secret value can be printed from it.
type Plan struct {
	Agent    string `json:"agent"`
	Bottle   string `json:"bottle"`
	Manifest string `json:"manifest"`
	Name     string `json:"name"`
	// Pinned: the name was asked for, so a lost race for it is an error.
	Pinned  bool   `json:"pinned"`
	Image   string `json:"image"`          // normalised reference of what will run
	BaseRef string `json:"base,omitempty"` // with --cwd: the image that Image is derived from
	// Build is what is built before all else; nil: nothing.
	Build *Build `json:"build,omitempty"`
	// Pull is the image that is pulled first: Image, or BaseRef. Dir is copied to
	// Image at Target, both absolute, with --cwd.
	Pull    string   `json:"pull,omitempty"`
	Dir     string   `json:"directory,omitempty"`
	Target  string   `json:"target,omitempty"`
	User    string   `json:"user"`    // the image's; empty: root, or not known before it is pulled
	Runtime string   `json:"runtime"` // "runsc" or "runc"
	Command []string `json:"command"`
	// ImageCommand: the image's own command, known when it has been pulled.
	ImageCommand bool                 `json:"image_command,omitempty"`
	Env          []provision.Variable `json:"env"`
	Egress       manifest.Egress      `json:"egress"`
	Proxy        Proxy                `json:"proxy"`
	// Learn: the proxy lets everything public through.
	Learn   bool            `json:"learn,omitempty"`
	Network Network         `json:"network"`
	Limits  manifest.Limits `json:"limits"`
	Prompt  string          `json:"-"` // text; shown as PromptBytes
	// PromptBytes is the length of the prompt.
	PromptBytes int                `json:"prompt_bytes"`
	Skills      []string           `json:"skills"`
	SSH         []manifest.SSHHost `json:"ssh"`
	Git         *manifest.Git      `json:"git,omitempty"`
	// Warnings are sentences that the preflight shows last, one a line.
	Warnings []string  `json:"warnings"`
	Created  time.Time `json:"-"`

	skills  []rootfile.File       // paths begin with the skill's name
	ssh     []provision.SSHAccess // of each entry of SSH
	caller  caller.Caller
	entries egress.Entries
	policy  egress.Policy // of entries
	command []string      // the agent's in the manifest; empty: the image's
	args    []string      // appended to the command
}

// Proxy says which proxy enforces the policy.
type Proxy struct {
	Kind string `json:"kind"` // "pipelock" or "builtin"
	// Image is pipelock's, as containerd's store has it; Version is pipelock's,
	// and Pinned says that the digest was asked for.
	Image   string `json:"image,omitempty"`
	Digest  string `json:"digest,omitempty"`
	Version string `json:"version,omitempty"`
	Pinned  bool   `json:"pinned,omitempty"`
	// Pull: the image is not there and is pulled; its digest is known if Pinned.
	Pull bool `json:"pull,omitempty"`
}

// Network names what will be wired.
type Network struct {
	Internal string `json:"internal"` // the segment between agent and proxy, CIDR
	Egress   string `json:"egress"`   // the network between proxy and host, CIDR
	Bridge   string `json:"bridge"`   // the egress network's bridge on the host
	// Changes are what is changed of the host's own while bottles run; the last
	// one that leaves undoes them.
	Changes []string `json:"host_changes"`
	// Warnings are sentences about what on the host may keep egress from working.
	Warnings []string `json:"-"`
}

// Provisions are the files and variables that the agent finds.
func (p *Plan) Provisions() provision.Agent {
	return provision.Agent{
		Hostname: names.Hostname(p.Name), Variables: p.Env, Prompt: p.Prompt, Skills: p.skills, Git: p.Git, SSH: p.ssh,
	}
}

// Caller is the user who invoked bottle.
func (p *Plan) Caller() caller.Caller { return p.caller }
