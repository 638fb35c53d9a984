// Package plan resolves a run against the manifest and the host. Prepare turns a Spec
// into a Plan, which names every image, variable, file and host that the run uses. It
// queries the host through the Host interface and changes nothing.
package plan

import (
	"time"

	"github.com/bot-bottle/bottle/agents"
	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/claudelogin"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/internal/rootfile"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/policy"
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
	Cwd          bool     // --cwd: copy the working directory to a workspace
	CwdImage     bool     // --cwd-image: run on an image with a copy of the working directory
	CwdIgnored   bool     // --cwd-ignored: copy files that git ignores, too
	Resume       *Resume  // use the workspace of a stopped bottle
	CwdTarget    string   // --cwd-target: where the copy is in the bottle; empty: DefaultCwdTarget
	CwdForce     bool     // --cwd-force: allow a home directory
	Pull         string   // --pull: one of PullPolicies; empty: PullMissing
	Env          []string // -e NAME or NAME=VALUE, in order
	EnvFiles     []EnvArg // of --env-file and --env-from-fd, in order; Env overrides them
	ForwardToken *bool    // CLAUDE_BOTTLE_OAUTH_TOKEN; nil: if it is set
	Args         []string // after --: appended to the agent's command
	NoInput      bool     // ask no questions
	// NamesOnly: only the names of variables and build secrets are needed, as for another
	// host's use of the plan. No value is read, and none needs to be there.
	NamesOnly bool
	// Forms, with NamesOnly: variables that are injected have placeholders in place of values,
	// as far as these can be read.
	Forms bool
	// Terminal: the agent's session is on the caller's terminal and ends with the caller.
	Terminal bool
	// Rules are the administrator's policy for the caller; nil: nothing is bound.
	Rules *policy.Rules
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
	// Kind is the agent's kind, if the manifest names it. KindHosts are the hosts that
	// it adds to the policy.
	Kind      string   `json:"kind,omitempty"`
	KindHosts []string `json:"kind_hosts,omitempty"`
	// Unattended: the agent acts without asking.
	Unattended bool `json:"unattended,omitempty"`
	// Login is the variable with the agent's login; empty: none is known.
	Login string `json:"login,omitempty"`
	// Pinned: the user chose the name, so that no other is used if it is taken.
	Pinned  bool   `json:"pinned"`
	Image   string `json:"image"`          // normalised reference of the image to run
	BaseRef string `json:"base,omitempty"` // with --cwd-image: the image that Image is derived from
	// ImageDigest is that of Image, or BaseRef; empty: unknown before a pull or a build.
	ImageDigest string `json:"image_digest,omitempty"`
	// Build is the image that is built first; nil: none.
	Build *Build `json:"build,omitempty"`
	// Pull is the image that is pulled first: Image, or BaseRef. With --cwd Dir is copied
	// to Target in a workspace, with --cwd-image to Target in Image; both are absolute.
	Pull   string `json:"pull,omitempty"`
	Dir    string `json:"directory,omitempty"`
	Target string `json:"target,omitempty"`
	// CwdIgnored: files that git ignores are copied, too.
	CwdIgnored bool `json:"cwd_ignored,omitempty"`
	// CredentialFiles are files in Dir that are known to hold credentials, relative to
	// it. CredentialsUnknown: there was no time to look for all of them.
	CredentialFiles    []string `json:"credential_files,omitempty"`
	CredentialsUnknown bool     `json:"credentials_unknown,omitempty"`
	// Workspace is storage that outlives the bottle; nil: none.
	Workspace *Workspace `json:"workspace,omitempty"`

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
	MCP         []agents.Server    `json:"mcp,omitempty"`
	SSH         []manifest.SSHHost `json:"ssh"`
	Git         *manifest.Git      `json:"git,omitempty"`
	// Pool is the number of bottles that are kept prepared for the agent, and Prepared is
	// what the run does with them; nil: there are none to use.
	Pool     int       `json:"pool,omitempty"`
	Prepared *Prepared `json:"prepared,omitempty"`
	// Warm: the agent is started in these bottles.
	Warm bool `json:"warm,omitempty"`
	// Policy is the administrator's policy that bounds the run; nil: none.
	Policy *Policy `json:"policy,omitempty"`
	// Warnings are sentences that the preflight shows last, one per line.
	Warnings []string  `json:"warnings"`
	Created  time.Time `json:"-"`

	// Logins are files with logins, of which the agent gets copies with placeholders.
	Logins []provision.Login `json:"logins,omitempty"`

	skills []rootfile.File       // paths begin with the skill's name
	ssh    []provision.SSHAccess // of each entry of SSH
	caller caller.Caller
	// renewals is when the values of commands are to be replaced, by variable.
	renewals map[string]time.Time
	claude   *claudelogin.Keeper // of the file in Logins; nil: there is none
	env      envInput
	entries  egress.Entries
	policy   egress.Policy // of entries
	rules    *policy.Rules
	command  []string     // the manifest's or the kind's; empty: the image's
	kind     *agents.Kind // named, or assumed from the command
	terminal bool         // Spec.Terminal
	args     []string     // appended to the command

	manifestSum string
}

// Policy is the administrator's policy of a run, and what it has changed of the request.
type Policy struct {
	Path   string         `json:"path"`
	SHA256 string         `json:"sha256"`
	Bounds []policy.Bound `json:"bounds"`
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

// Workspace describes the storage of the agent's files.
type Workspace struct {
	Size int64 `json:"size_bytes"` // the maximum
	// Existing: the workspace of the bottle's name is used as it is, and nothing is
	// copied.
	Existing bool `json:"existing,omitempty"`
}

// Prepared says whether a run uses a prepared bottle.
type Prepared struct {
	Name string `json:"name,omitempty"` // of the bottle; empty: none is used
	// Reason is why none is used.
	Reason string `json:"reason,omitempty"`
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
		Kind: p.kind, Unattended: p.Unattended,
		Hostname: names.Hostname(p.Name), Variables: p.Env, Prompt: p.Prompt, Skills: p.skills, MCP: p.MCP, Git: p.Git, SSH: p.ssh,
		Logins: p.Logins,
	}
}

// ManifestSHA256 returns the hash of the manifest's text in hexadecimal; empty: the
// manifest was not read from a file.
func (p *Plan) ManifestSHA256() string { return p.manifestSum }

// Caller returns the user who invoked bottle.
func (p *Plan) Caller() caller.Caller { return p.caller }
