package manifest

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/bot-bottle/bottle/agents"
	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/egress/hostrule"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/nearest"
	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/sshagent"
)

// Manifest is the user's configuration of bottles and agents. It has been validated as
// far as possible without a host.
type Manifest struct {
	Path    string
	Bottles map[string]*Bottle
	Agents  map[string]*Agent
	// Text is the file's content, if the manifest was read by Load. It may contain
	// values that are not to be printed.
	Text secret.Value
}

// Bottle is an environment for agents.
type Bottle struct {
	Image  string // as written; empty: the default
	Build  *Build
	Env    []Variable // in the order of the manifest
	Egress Egress
	Proxy  Proxy
	SSH    []SSHHost // IdentityFile as written
	Git    *Git
	Limits Limits // zero: the default
	// Logins are formats of package loginfile: the agent gets copies of the caller's files
	// with placeholders.
	Logins []string
}

// Build configures how an image is built. In a bottle without an image it has only
// arguments and secrets, which apply to the default image.
type Build struct {
	Context, Dockerfile, Target string
	Args                        map[string]string
	Secrets                     map[string]string
	// HostNetwork: steps use the host's network. Otherwise their only way out is a proxy
	// that allows what Allow lists, or all public hosts if it is nil.
	HostNetwork bool
	Allow       []string
}

// Variable is an environment variable in a manifest. Exactly one of Literal, From, Prompt,
// File and Command is set and determines where the value comes from.
type Variable struct {
	Name    string
	Literal *string
	From    string   // a variable of the caller; Name if the manifest sets none
	Prompt  string   // the question to ask at launch
	File    string   // as written
	Command []string // a program of the host, with arguments, that prints the value
	// Inject says where the value may go, so that the agent gets a placeholder for it;
	// nil: not stated.
	Inject *Injection
	// TTL is how long the value of Command is valid, unless it says so itself: the
	// command is run again before. 0: the value does not expire.
	TTL time.Duration
	At  position
}

// Injection says which requests get the value of a variable in place of its placeholder.
type Injection struct {
	// Hosts are DNS names, each with an optional port (443); empty: the agent gets the
	// value itself.
	Hosts []string
	// As are the parts of a request: InHeaders, InQuery, InBody or names of headers;
	// empty: InHeaders.
	As []string
}

// Parts of a request in which a placeholder is replaced. InHeaders are those that servers
// do not usually store or send back.
const (
	InHeaders = "headers"
	InQuery   = "query"
	InBody    = "body"
)

// Proxy selects the proxy that enforces the egress policy; empty: the defaults.
type Proxy struct {
	Kind  string // ProxyPipelock or ProxyBuiltin
	Image string // pipelock's, as written
	// Version is that of pipelock in Image; empty: the one in its tag.
	Version string
	Memory  int64 // limit in bytes; 0: the proxy's default
}

// Agent is a command that runs in a bottle, with its prompt and skills.
type Agent struct {
	// Kind is one of package agents; empty: none is named.
	Kind   string
	Bottle string
	// Command is the program and its arguments; empty: the kind's, or else the image's.
	Command []string
	// Unattended: the agent acts without asking.
	Unattended bool
	Prompt     string
	Skills     []string
	// MCP are the agent's MCP servers, in the order of the manifest.
	MCP []agents.Server
	// Pool is the number of bottles to keep prepared, at most MaxPool.
	Pool int
	// Warm: the agent is started in them.
	Warm bool
}

// MaxPool is the largest pool of an agent.
const MaxPool = 16

// KindOf returns the kind of the agent: the one that is named, or else the
// one whose program the command runs, or else the default.
func (a *Agent) KindOf() *agents.Kind {
	if a.Kind != "" {
		return agents.Get(a.Kind)
	}
	if k := agents.OfCommand(a.Command); k != nil {
		return k
	}
	return agents.Get(agents.Default)
}

// Egress returns the policy of the agent in its bottle: the bottle's, with the hosts of
// the kind that is named, which it also returns. set reports variables that are set in
// addition to the bottle's; nil: none.
func (a *Agent) Egress(b *Bottle, set func(variable string) bool) (policy Egress, kindHosts []string) {
	policy = b.Egress
	if a.Kind == "" {
		return policy, nil
	}
	kindHosts = agents.Get(a.Kind).HostsWith(func(name string) bool {
		return set != nil && set(name) || slices.ContainsFunc(b.Env, func(v Variable) bool { return v.Name == name })
	})
	// Rules for a host of the kind are the user's wish, too.
	kindHosts = egress.WithoutNarrowed(kindHosts, b.Egress.Rules)
	policy.Allow = slices.Concat(policy.Allow, kindHosts)
	return policy, kindHosts
}

// CommandOfKind returns the agent's command, or that of the kind that is named; nil: the
// image's.
func (a *Agent) CommandOfKind() []string {
	if len(a.Command) == 0 && a.Kind != "" {
		return agents.Get(a.Kind).Command
	}
	return a.Command
}

// maxManifest bounds a manifest's size, in bytes.
const maxManifest = 1 << 20

// manifestNames are the names of manifests, in the order of the search in a directory.
var manifestNames = []string{"bottle.yaml", "bottle.yml", "bottle.json"}

// homeManifests is the directory of a user's own manifest, relative to the home.
const homeManifests = ".config/bottle"

// ErrNotFound is wrapped if no manifest is found.
var ErrNotFound = errors.New("no manifest found")

// Find returns the path of the manifest that applies to the caller: the nearest one in the
// working directory or in its parents, else the one in .config/bottle in their home. It
// searches with the caller's rights.
func Find(c caller.Caller) (string, error) {
	dirs := []string{}
	for dir := c.WorkDir; ; dir = filepath.Dir(dir) {
		dirs = append(dirs, dir)
		if dir == filepath.Dir(dir) {
			break
		}
	}
	if c.Home != "" {
		dirs = append(dirs, filepath.Join(c.Home, homeManifests))
	}
	for _, dir := range dirs {
		for _, name := range manifestNames {
			path := filepath.Join(dir, name)
			if fi, err := c.Stat(path); err == nil && fi.Mode().IsRegular() {
				return path, nil
			}
		}
	}
	return "", &hint.Error{
		Err: fmt.Errorf("%w (searched for %s in %s and its parents, and in %s)", ErrNotFound,
			strings.Join(manifestNames, ", "), c.WorkDir, dirs[len(dirs)-1]),
		Hint: "create one with bottle init, or choose one with --manifest",
	}
}

// Load reads a manifest with the caller's rights and validates it. The error reports all
// problems, each with file, line and column.
func Load(path string, c caller.Caller) (*Manifest, error) {
	data, err := Read(path, c)
	if err != nil {
		return nil, err
	}
	m, err := Parse(path, data)
	if err != nil {
		return nil, err
	}
	m.Text = secret.New(string(data))
	return m, nil
}

// Read reads a manifest with the caller's rights. It is not validated; of a file that is
// too large for a manifest only a part is read.
func Read(path string, c caller.Caller) ([]byte, error) {
	data, err := c.ReadRegular(path, maxManifest+1)
	if err != nil {
		return nil, &hint.Error{Err: fmt.Errorf("read manifest: %w", err), Hint: "choose an existing file with --manifest"}
	}
	return data, nil
}

// Lookup returns an agent and its bottle.
func (m *Manifest) Lookup(name string) (*Agent, *Bottle, error) {
	a, ok := m.Agents[name]
	if !ok {
		names := sortedKeys(m.Agents)
		err := fmt.Errorf("unknown agent %q in %s", name, m.Path)
		if len(names) == 0 {
			return nil, nil, &hint.Error{Err: err, Hint: "add one under agents"}
		}
		fix := "known agents: " + cut(strings.Join(names, ", "), maxShown)
		if n := nearest.Of(name, names); n != "" {
			fix = fmt.Sprintf("did you mean %q? %s", n, fix)
		}
		return nil, nil, &hint.Error{Err: err, Hint: fix}
	}
	return a, m.Bottles[a.Bottle], nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// SSHHost is one entry of a bottle's ssh list.
type SSHHost struct {
	Host         string `json:"host"`
	HostName     string `json:"hostname"`
	User         string `json:"user,omitempty"`
	Port         int    `json:"port"`
	IdentityFile string `json:"identity_file"`
	// HostKey is the host's public key, if set in the manifest: "ssh-ed25519 AAAA…".
	HostKey string `json:"host_key,omitempty"`
	Mode    string `json:"mode"` // SSHAgent or SSHCopy
	// PubkeyAuthentication is PubkeyHostBound or PubkeyUnbound.
	PubkeyAuthentication string `json:"pubkey_authentication"`
	// Forge is the public forge that publishes the host key. Its logins may be
	// unbound, since nobody else has that key. It is set in plans only.
	Forge string `json:"forge,omitempty"`
	// Keys are the fingerprints of the keys that may be used there; nil: not resolved
	// yet.
	Keys []string `json:"keys,omitempty"`
}

// HostKeyFingerprint returns the fingerprint of HostKey, "SHA256:…", or nothing if it is
// not set.
func (h SSHHost) HostKeyFingerprint() string {
	key, err := sshagent.ParsePublic([]byte(h.HostKey))
	if err != nil {
		return ""
	}
	return sshagent.Fingerprint(key)
}

// Git is the identity for commits.
type Git struct {
	Name  string `json:"name"`
	Email string `json:"email"`
}

// Limits bound the resources of the agent's task.
type Limits struct {
	Memory int64   `json:"memory_bytes"`
	CPUs   float64 `json:"cpus,omitempty"` // 0: no limit
	Pids   int64   `json:"pids"`
	// Disk bounds the growth of the agent's root file system, in bytes. It is not
	// enforced under runc.
	Disk int64 `json:"disk_bytes"`
	// Workspace bounds the files of a workspace, in bytes.
	Workspace int64 `json:"workspace_bytes"`
}

// Egress is the egress policy in the notation of the manifest.
type Egress struct {
	Allow []string `json:"allow"` // empty: nothing is allowed
	// Rules are the entries of allow that say more than a host, with the host in lower-case
	// ASCII. A host is not in both lists.
	Rules []hostrule.Rule `json:"rules,omitempty"`
	// Deny are exceptions from Allow and from the hosts of ssh.
	Deny []string `json:"deny"`
	// AllowPrivate lists the destinations that may be in private networks.
	AllowPrivate []string `json:"allow_private"`
	// Presets are the presets that Expand replaced by their hosts in Allow and Deny.
	Presets []EgressPreset `json:"presets,omitempty"`
}

// EgressPreset is a preset that a policy names.
type EgressPreset struct {
	Name  string              `json:"name"`
	List  string              `json:"list"` // "allow" or "deny"
	Hosts []egress.PresetHost `json:"hosts"`
}

// Kinds of proxies.
const (
	ProxyPipelock = "pipelock"
	ProxyBuiltin  = "builtin"
)

// Modes of an ssh entry: its key stays in bottle's ssh agent on the host, or is copied
// into the bottle.
const (
	SSHAgent = "agent"
	SSHCopy  = "copy"
)

// Values of PubkeyAuthentication of an ssh entry, as in ssh_config(5): only logins that
// include the host key are signed, or all logins.
const (
	PubkeyHostBound = "host-bound"
	PubkeyUnbound   = "unbound"
)

// Defaults of a manifest.
const (
	DefaultProxy = ProxyPipelock

	defaultMemory = 4 << 30 // bytes
	defaultPids   = 4096
	defaultDisk   = 20 << 30 // bytes

	defaultWorkspace = 10 << 30 // bytes
)

// Sorted returns the policy with each list sorted and without duplicates.
func (e Egress) Sorted() Egress {
	return Egress{Allow: sortedSet(e.Allow), Rules: e.Rules, Deny: sortedSet(e.Deny), AllowPrivate: sortedSet(e.AllowPrivate)}
}

// Expand returns the policy with the hosts of presets in their place, except for those that
// have rules, and each list sorted and without duplicates.
func (e Egress) Expand() Egress {
	allow := egress.WithoutNarrowed(egress.Expand(e.Allow), e.Rules)
	out := Egress{Allow: allow, Rules: e.Rules, Deny: egress.Expand(e.Deny), AllowPrivate: sortedSet(e.AllowPrivate)}
	for _, list := range []struct {
		name    string
		entries []string
	}{{"allow", e.Allow}, {"deny", e.Deny}} {
		for _, entry := range sortedSet(list.entries) {
			if p, err := egress.LookupPreset(entry); err == nil {
				out.Presets = append(out.Presets, EgressPreset{Name: p.Name, List: list.name, Hosts: p.Hosts})
			}
		}
	}
	return out
}

// sortedSet returns the list sorted, without duplicates, and never nil.
func sortedSet(list []string) []string {
	out := slices.Clone(list)
	slices.Sort(out)
	out = slices.Compact(out)
	if out == nil {
		return []string{}
	}
	return out
}
