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

// Spec is the request of one run: the command line and the caller's environment,
// unresolved.
type Spec struct {
	Agent        string // the agent's name in the manifest
	ManifestPath string // --manifest; empty: search for it
	// Loaded is the manifest if it has been read; nil: Prepare finds and reads it.
	Loaded       *manifest.Manifest
	Name         string   // --name; empty: CLAUDE_BOTTLE_CONTAINER, else derived from the agent
	Runtime      string   // --runtime; empty: DefaultRuntime
	Proxy        string   // --proxy; empty: the manifest's, else DefaultProxy
	Learn        bool     // --learn: allow everything and log what the policy would refuse
	Cwd          bool     // --cwd: run an image that contains the working directory
	CwdTarget    string   // --cwd-target: its path in that image; empty: DefaultCwdTarget
	CwdForce     bool     // --cwd-force: allow a home directory
	Pull         string   // --pull: one of PullPolicies; empty: PullMissing
	Env          []string // -e NAME or NAME=VALUE, in order
	EnvFiles     []EnvArg // of --env-file and --env-from-fd, in order; Env overrides them
	ForwardToken *bool    // CLAUDE_BOTTLE_OAUTH_TOKEN; nil: if it is set
	Args         []string // after --: appended to the agent's command
	NoInput      bool     // ask no questions
	// Caller is the invoking user and their working directory.
	Caller caller.Caller
}

// Plan is a Spec resolved against the manifest and the host. It describes everything
// that Launch will do. The preflight prints it; secret values cannot be printed.
type Plan struct {
	Agent    string `json:"agent"`
	Bottle   string `json:"bottle"`
	Manifest string `json:"manifest"`
	Name     string `json:"name"`
	// Pinned: the user chose the name, so that no other is used if it is taken.
	Pinned  bool   `json:"pinned"`
	Image   string `json:"image"`          // normalised reference of the image to run
	BaseRef string `json:"base,omitempty"` // with --cwd: the image that Image is derived from
	// Build is the image that is built first; nil: none.
	Build *Build `json:"build,omitempty"`
	// Pull is the image that is pulled first: Image, or BaseRef. Dir is copied to
	// Image at Target, both absolute, with --cwd.
	Pull   string `json:"pull,omitempty"`
	Dir    string `json:"directory,omitempty"`
	Target string `json:"target,omitempty"`
	// CredentialFiles are files in Dir that are known to hold credentials, relative to
	// it. CredentialsUnknown: there was no time to look for all of them.
	CredentialFiles    []string `json:"credential_files,omitempty"`
	CredentialsUnknown bool     `json:"credentials_unknown,omitempty"`

	User    string   `json:"user"`    // the image's; empty: root, or unknown before the pull
	Runtime string   `json:"runtime"` // "runsc" or "runc"
	Command []string `json:"command"`
	// ImageCommand: the command is the image's, and unknown before the pull.
	ImageCommand bool                 `json:"image_command,omitempty"`
	Env          []provision.Variable `json:"env"`
	// EnvPipes are the pipes that give more variables when the run is confirmed.
	EnvPipes []string        `json:"env_pipes,omitempty"`
	Egress   manifest.Egress `json:"egress"`
	Proxy    Proxy           `json:"proxy"`
	// Learn: the proxy allows all public hosts.
	Learn   bool            `json:"learn,omitempty"`
	Network Network         `json:"network"`
	Limits  manifest.Limits `json:"limits"`
	Prompt  string          `json:"-"` // text; shown as PromptBytes
	// PromptBytes is the length of the prompt.
	PromptBytes int                `json:"prompt_bytes"`
	Skills      []string           `json:"skills"`
	SSH         []manifest.SSHHost `json:"ssh"`
	Git         *manifest.Git      `json:"git,omitempty"`
	// Warnings are sentences that the preflight shows last, one per line.
	Warnings []string  `json:"warnings"`
	Created  time.Time `json:"-"`

	skills  []rootfile.File       // paths begin with the skill's name
	ssh     []provision.SSHAccess // of each entry of SSH
	caller  caller.Caller
	env     envInput
	entries egress.Entries
	policy  egress.Policy // of entries
	command []string      // the manifest's; empty: the image's
	args    []string      // appended to the command
}

// Proxy describes the proxy that enforces the policy.
type Proxy struct {
	Kind string `json:"kind"` // "pipelock" or "builtin"
	// Image is the name of pipelock's image in containerd's store. Pinned: the
	// manifest names the digest.
	Image   string `json:"image,omitempty"`
	Digest  string `json:"digest,omitempty"`
	Version string `json:"version,omitempty"`
	Pinned  bool   `json:"pinned,omitempty"`
	// Pull: the image is missing and will be pulled; its digest is known if Pinned.
	Pull bool `json:"pull,omitempty"`
	// Memory is the memory limit in the manifest, in bytes; 0: the default.
	Memory int64 `json:"memory_bytes,omitempty"`
}

// Network describes the networks of a bottle.
type Network struct {
	Internal string `json:"internal"` // the segment between agent and proxy, CIDR
	Egress   string `json:"egress"`   // the network between proxy and host, CIDR
	Bridge   string `json:"bridge"`   // the egress network's bridge on the host
	// Changes are the changes to the host's settings while bottles run. The removal
	// of the last bottle reverts them.
	Changes []string `json:"host_changes"`
	// Warnings are sentences about host settings that may block egress.
	Warnings []string `json:"-"`
}

// Provisions returns the files and variables for the agent.
func (p *Plan) Provisions() provision.Agent {
	return provision.Agent{
		Hostname: names.Hostname(p.Name), Variables: p.Env, Prompt: p.Prompt, Skills: p.skills, Git: p.Git, SSH: p.ssh,
	}
}

// Caller returns the user who invoked bottle.
func (p *Plan) Caller() caller.Caller { return p.caller }
