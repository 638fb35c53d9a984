package manifest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/internal/caller"

	"github.com/bot-bottle/bottle/internal/hint"
)

// Manifest is the user's file of bottles and agents, checked as far as that is
// possible without a host.
type Manifest struct {
	Path    string
	Bottles map[string]*Bottle
	Agents  map[string]*Agent
}

// BottleConfig is an environment as the manifest describes it.
type Bottle struct {
	Image  string // as written; empty: the default
	Build  *Build
	Env    []Variable // in the manifest's order
	Egress Egress
	Proxy  Proxy
	SSH    []SSHHost // IdentityFile as written
	Git    *Git
	Limits Limits // zero: the default
}

// BuildConfig says how an image is built. Without an image's name it has arguments
// and secrets only, which are for the default image.
type Build struct {
	Context, Dockerfile, Target string
	Args                        map[string]string
	Secrets                     map[string]string
}

// EnvConfig is one variable as the manifest describes it. Exactly one of the
// fields behind Name says where the value comes from.
type Variable struct {
	Name    string
	Literal *string
	From    string // a variable of the caller's; Name itself when none is named
	Prompt  string // a question
	File    string // as written
	At      position
}

// ProxyConfig says which proxy enforces the policy; empty: the defaults.
type Proxy struct {
	Kind  string // ProxyPipelock or ProxyBuiltin
	Image string // pipelock's, as written
	// Version is that of pipelock in Image; empty: the one in its tag.
	Version string
}

// AgentConfig is a command, with what it is told, in a bottle.
type Agent struct {
	Bottle  string
	Command []string // empty: the image's
	Prompt  string
	Skills  []string
}

// maxManifest bounds a manifest's size, in bytes.
const maxManifest = 1 << 20

// manifestNames are looked for in this order in each folder.
var manifestNames = []string{"bottle.yaml", "bottle.yml", "bottle.json"}

// homeManifests is where in a user's home their own manifest is.
const homeManifests = ".config/bottle"

// ErrNoManifest is wrapped when no manifest is found.
var ErrNotFound = errors.New("no manifest found")

// FindManifest returns the path of the manifest that holds for a folder: the
// nearest one in it or above it, else the one in home's .config/bottle.
func Find(workDir, home string) (string, error) {
	dirs := []string{}
	for dir := workDir; ; dir = filepath.Dir(dir) {
		dirs = append(dirs, dir)
		if dir == filepath.Dir(dir) {
			break
		}
	}
	if home != "" {
		dirs = append(dirs, filepath.Join(home, homeManifests))
	}
	for _, dir := range dirs {
		for _, name := range manifestNames {
			path := filepath.Join(dir, name)
			if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() {
				return path, nil
			}
		}
	}
	return "", &hint.Error{
		Err: fmt.Errorf("%w (looked for %s in %s and above, and in %s)", ErrNotFound,
			strings.Join(manifestNames, ", "), workDir, dirs[len(dirs)-1]),
		Hint: "write one with bottle init, or name one with --manifest",
	}
}

// Load reads a manifest with the caller's rights and checks it. The error reports all
// mistakes, each with file, line and column.
func Load(path string, c caller.Caller) (*Manifest, error) {
	data, err := c.ReadRegular(path, maxManifest+1)
	if err != nil {
		return nil, &hint.Error{Err: fmt.Errorf("read the manifest: %w", err), Hint: "name an existing one with --manifest"}
	}
	return Parse(path, data)
}

// agent returns an agent and the bottle it lives in.
func (m *Manifest) Lookup(name string) (*Agent, *Bottle, error) {
	a, ok := m.Agents[name]
	if !ok {
		names := sortedKeys(m.Agents)
		err := fmt.Errorf("no agent %q in %s", name, m.Path)
		if len(names) == 0 {
			return nil, nil, &hint.Error{Err: err, Hint: "there are none yet: add one under agents"}
		}
		fix := "there are: " + cut(strings.Join(names, ", "), maxShown)
		if n := nearest(name, names); n != "" {
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
	// HostKey is the host's, if the manifest says it: "ssh-ed25519 AAAA…".
	HostKey string `json:"host_key,omitempty"`
	Mode    string `json:"mode"` // SSHAgent or SSHCopy
	// PubkeyAuthentication is PubkeyHostBound or PubkeyUnbound.
	PubkeyAuthentication string `json:"pubkey_authentication"`
	// Forge is the public forge that publishes the host key. Its logins may be
	// unbound, since nobody else holds that key. Only a plan knows it.
	Forge string `json:"forge,omitempty"`
	// Keys are the fingerprints of the keys that may be used there; nil: nobody
	// was asked yet.
	Keys []string `json:"keys,omitempty"`
}

// Git is the identity that commits are made under.
type Git struct {
	Name  string `json:"name"`
	Email string `json:"email"`
}

// Limits bound the agent's task.
type Limits struct {
	Memory int64   `json:"memory_bytes"`
	CPUs   float64 `json:"cpus,omitempty"` // 0: no limit
	Pids   int64   `json:"pids"`
	// Disk bounds what the agent's root file system grows by, in bytes. Under
	// runc nothing enforces it.
	Disk int64 `json:"disk_bytes"`
}

// Egress is the policy as the plan shows it.
type Egress struct {
	Allow []string `json:"allow"` // sorted, without doubles; empty: nothing is allowed
	// Deny are exceptions from Allow and from the hosts of ssh.
	Deny []string `json:"deny"`
	// AllowPrivate are those destinations that may be in private networks.
	AllowPrivate []string `json:"allow_private"`
}

// Kinds of proxies.
const (
	ProxyPipelock = "pipelock"
	ProxyBuiltin  = "builtin"
)

// Modes of an ssh entry: whether its key stays with bottle's own agent on the
// host, or is copied into the bottle.
const (
	SSHAgent = "agent"
	SSHCopy  = "copy"
)

// Values of an ssh entry's PubkeyAuthentication, the words of ssh_config(5): whether
// only logins that name the host key are signed, or all logins.
const (
	PubkeyHostBound = "host-bound"
	PubkeyUnbound   = "unbound"
)

// What holds where a manifest says nothing.
const (
	DefaultImage = "claude-bottle:latest"
	DefaultProxy = ProxyPipelock

	defaultMemory = 4 << 30 // bytes
	defaultPids   = 4096
	defaultDisk   = 20 << 30 // bytes
)

// Sorted is the policy with each list sorted and without duplicates.
func (e Egress) Sorted() Egress {
	return Egress{Allow: sortedSet(e.Allow), Deny: sortedSet(e.Deny), AllowPrivate: sortedSet(e.AllowPrivate)}
}

// sortedSet returns the list sorted, without doubles, and never nil.
func sortedSet(list []string) []string {
	out := slices.Clone(list)
	slices.Sort(out)
	out = slices.Compact(out)
	if out == nil {
		return []string{}
	}
	return out
}
