// Package agents knows coding agents by kind: the program, the hosts of its API, its
// logins, its files and how its image is built. Each kind is one YAML file in this
// directory; docs/agents.md describes the format.
//
// The package decides nothing and touches neither host nor network: manifest, plan,
// provision and images/agent read it.
package agents

import (
	"bytes"
	"embed"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"

	"go.yaml.in/yaml/v4"

	"github.com/bot-bottle/bottle/internal/lazyregexp"
)

// Default is the kind of an agent whose manifest names none and whose command is
// unknown.
const Default = "claude"

// Kind describes one coding agent.
type Kind struct {
	// Name is the name in the manifest: that of the file.
	Name string `yaml:"-"`
	// Title is the name that its publisher uses.
	Title string `yaml:"title"`
	// Command is the program, and the arguments that it always gets.
	Command []string `yaml:"command"`
	// Attended is added unless the agent is unattended, for agents that do not ask by
	// default. Unattended makes the agent act without asking.
	Attended   Mode `yaml:"attended"`
	Unattended Mode `yaml:"unattended"`
	// Hosts are the hosts that it needs with any login.
	Hosts []string `yaml:"hosts"`
	// Env are the defaults of its variables, and RootEnv those if it runs as root.
	Env     map[string]string `yaml:"env"`
	RootEnv map[string]string `yaml:"root_env"`
	// Logins are the ways to log in, the usual one first.
	Logins []Login `yaml:"logins"`
	// Config is the directory of its configuration.
	Config Config `yaml:"config"`
	Prompt Prompt `yaml:"prompt"`
	// Skills is the directory of its skills, a path as in File; empty: it has none.
	Skills string `yaml:"skills"`
	// MCP is how its MCP servers are configured; nil: not known.
	MCP *MCP `yaml:"mcp"`
	// Files are edited in the image before it starts.
	Files []File `yaml:"files"`
	// Image is how its image is built; nil: the user provides the image.
	Image *Image `yaml:"image"`
}

// Mode is what an agent gets in one of its modes.
type Mode struct {
	Options []string          `yaml:"options"` // after the program
	Env     map[string]string `yaml:"env"`
	Files   []File            `yaml:"files"`
}

// Login is a variable that logs the agent in.
type Login struct {
	Variable string `yaml:"variable"`
	// Get says where the user gets the value.
	Get string `yaml:"get"`
	// Hosts are needed with this login, in addition to those of the kind.
	Hosts []string `yaml:"hosts"`
	// Env are variables that go with it, with defaults, and Files its settings.
	Env   map[string]string `yaml:"env"`
	Files []File            `yaml:"files"`
	// Inject are the hosts whose requests get the value, if the agent works with a
	// placeholder; empty: that was not tested. InjectUnless are variables with which it
	// would send its login to other hosts.
	Inject       []string `yaml:"inject"`
	InjectUnless []string `yaml:"inject_unless"`
}

// Config is the directory of an agent's configuration, in which paths that begin with
// "{config}" are.
type Config struct {
	// Variable moves the directory, if it is set to an absolute path; may be empty.
	Variable string `yaml:"variable"`
	// Dir is the default: ~/ is the agent's home.
	Dir string `yaml:"dir"`
}

// Prompt is how an agent gets the manifest's prompt. At most one of Option and File is
// set; with neither, the agent only finds the path in a variable.
type Prompt struct {
	// Option takes the path of the prompt. Conflicts are other options for a prompt.
	Option    string   `yaml:"option"`
	Conflicts []string `yaml:"conflicts"`
	// File is a file of instructions that the agent reads in every session; it becomes
	// a link to the prompt.
	File string `yaml:"file"`
}

// Formats of a File.
const (
	JSON = "json"
	TOML = "toml"
)

// File is a configuration file in which keys are set. In its keys, "{workdir}" is the
// agent's working directory.
type File struct {
	// Path begins with "~/" or "{config}/". Moved replaces it if the variable of Config
	// is set; empty: Path.
	Path   string         `yaml:"path"`
	Moved  string         `yaml:"moved"`
	Format string         `yaml:"format"`
	Set    map[string]any `yaml:"set"`
	// Keep leaves keys that the image's file has.
	Keep bool `yaml:"keep"`
}

// Image is how an image with the agent is built.
type Image struct {
	// Packages are installed from Debian.
	Packages []string `yaml:"packages"`
	// Args are build arguments with defaults, NAME=VALUE: versions and checksums.
	Args []string `yaml:"args"`
	// Install is a bash script that places the agent's files below /out. It runs as
	// root in an empty directory and has the function npm_package.
	Install string `yaml:"install"`
	// Env is set in the image, because a session of any command needs it.
	Env map[string]string `yaml:"env"`
	// Source describes where the program comes from.
	Source string `yaml:"source"`
}

//go:embed *.yaml
var files embed.FS

// Names returns the names of all kinds, sorted.
func Names() []string { return slices.Clone(names()) }

var names = sync.OnceValue(func() []string {
	entries, err := files.ReadDir(".")
	if err != nil {
		panic(err) // an embedded directory is readable
	}
	var out []string
	for _, e := range entries {
		out = append(out, strings.TrimSuffix(e.Name(), path.Ext(e.Name())))
	}
	slices.Sort(out)
	return out
})

var (
	mu    sync.Mutex
	known = map[string]*Kind{}
)

// Lookup returns a kind by its name. The caller must not change what it points to.
func Lookup(name string) (*Kind, bool) {
	if !slices.Contains(names(), name) {
		return nil, false
	}
	mu.Lock()
	defer mu.Unlock()
	if k := known[name]; k != nil {
		return k, true
	}
	data, err := files.ReadFile(name + ".yaml")
	if err != nil {
		panic(err)
	}
	k, err := parse(name, data)
	if err != nil {
		panic(err) // the files are part of the program, and tested
	}
	known[name] = k
	return k, true
}

func parse(name string, data []byte) (*Kind, error) {
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	k := &Kind{Name: name}
	if err := d.Decode(k); err != nil {
		return nil, fmt.Errorf("agents/%s.yaml: %w", name, err)
	}
	return k, nil
}

// Get returns a kind that exists.
func Get(name string) *Kind {
	k, ok := Lookup(name)
	if !ok {
		panic("unknown kind " + name)
	}
	return k
}

// OfCommand returns the kind whose program a command runs; nil if there is none.
func OfCommand(command []string) *Kind {
	if len(command) == 0 {
		return nil
	}
	name, ok := programs()[path.Base(command[0])]
	if !ok {
		return nil
	}
	return Get(name)
}

// programs returns the kind of each program. It decodes one line of each file, because
// every run of bottle needs this and few need more than one kind.
var programs = sync.OnceValue(func() map[string]string {
	out := map[string]string{}
	for _, name := range names() {
		data, err := files.ReadFile(name + ".yaml")
		if err != nil {
			panic(err)
		}
		var k struct{ Command []string }
		if err := yaml.Unmarshal(commandLine().Find(data), &k); err != nil || len(k.Command) == 0 {
			panic("agents/" + name + ".yaml: the command is not on one line") // a test reads all files
		}
		out[path.Base(k.Command[0])] = name
	}
	return out
})

var commandLine = lazyregexp.New(`(?m)^command:.*$`)

// Program is the name of the agent's program.
func (k *Kind) Program() string { return path.Base(k.Command[0]) }

// Runs reports whether a command runs the agent's program.
func (k *Kind) Runs(command []string) bool {
	return len(command) > 0 && path.Base(command[0]) == k.Program()
}

// InMode returns a command of the agent with the options of the mode after the program,
// without those that it already has.
func (k *Kind) InMode(command []string, unattended bool) []string {
	if !k.Runs(command) {
		return command
	}
	options := k.Mode(unattended).Options
	if len(options) > 0 && slices.Contains(command, options[0]) {
		return command
	}
	return slices.Insert(slices.Clone(command), 1, options...)
}

// Mode returns Unattended or Attended.
func (k *Kind) Mode(unattended bool) Mode {
	if unattended {
		return k.Unattended
	}
	return k.Attended
}

// HostsWith returns the hosts that the agent needs with the logins whose variables are
// set, sorted: with none, those of the first login.
func (k *Kind) HostsWith(set func(variable string) bool) []string {
	out := slices.Clone(k.Hosts)
	given := k.Given(set)
	if len(given) == 0 && len(k.Logins) > 0 {
		given = k.Logins[:1]
	}
	for _, l := range given {
		out = append(out, l.Hosts...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Given returns the logins whose variables are set.
func (k *Kind) Given(set func(variable string) bool) []Login {
	var out []Login
	for _, l := range k.Logins {
		if set(l.Variable) {
			out = append(out, l)
		}
	}
	return out
}

// Variables returns the variables of the logins, in order.
func (k *Kind) Variables() []string {
	var out []string
	for _, l := range k.Logins {
		out = append(out, l.Variable)
	}
	return out
}

// Login returns the login of a variable.
func (k *Kind) Login(variable string) (Login, bool) {
	i := slices.IndexFunc(k.Logins, func(l Login) bool { return l.Variable == variable })
	if i < 0 {
		return Login{}, false
	}
	return k.Logins[i], true
}

// DefaultImage is the name of the image that is built for the kind.
func (k *Kind) DefaultImage() string {
	if k.Name == Default {
		return "claude-bottle:latest"
	}
	return "bottle-" + k.Name + ":latest"
}

// Place resolves a path of the kind in a home directory. moved is the value of the
// variable of Config, or empty.
func (k *Kind) Place(written, home, moved string) string {
	if rest, ok := strings.CutPrefix(written, "{config}"); ok {
		dir := k.Config.Dir
		if moved != "" {
			dir = moved
		}
		written = dir + rest
	}
	if rest, ok := strings.CutPrefix(written, "~/"); ok {
		return path.Join(home, rest)
	}
	return written
}
