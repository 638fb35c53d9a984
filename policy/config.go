package policy

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/bot-bottle/bottle/audit"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/hostconfig"
	"github.com/bot-bottle/bottle/internal/rootonly"
)

// Settings of the host, the keys of the configuration file. Whoever chooses one of them
// can have root connect to a socket, execute a program, or change a directory.
const (
	Address     = hostconfig.KeyAddress
	Namespace   = hostconfig.KeyNamespace
	Snapshotter = hostconfig.KeySnapshotter
	RunDir      = hostconfig.KeyRunDir
	StateDir    = hostconfig.KeyStateDir
	CNIPath     = hostconfig.KeyCNIPath
	CNIConf     = hostconfig.KeyCNIConf
	HostsDir    = hostconfig.KeyHostsDir
	Buildkit    = hostconfig.KeyBuildkit
)

// Settings are all settings of the host.
var Settings = hostconfig.Keys()

// Config is the system configuration: settings of the host for every user.
type Config struct {
	// Path is that of the file; empty: there is none.
	Path string `json:"path,omitempty"`
	// Values are those of the settings in the file.
	Values map[string]string `json:"values"`
	// UsersMaySet are the settings that users of sudo may choose themselves.
	UsersMaySet []string `json:"users_may_set"`
	// Audit says where events are written, of root's work too.
	Audit audit.Config `json:"audit"`

	dir string
}

// LoadConfig reads the system configuration in a directory, if it exists.
func LoadConfig(dir string) (*Config, error) {
	path := filepath.Join(dir, ConfigFile)
	data, err := rootonly.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &Config{Values: map[string]string{}, dir: dir}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the system configuration: %w", err)
	}
	c, err := ParseConfig(path, data)
	if err == nil {
		c.dir = dir
	}
	return c, err
}

// ParseConfig parses and validates a system configuration, as Parse does a policy.
func ParseConfig(path string, data []byte) (*Config, error) {
	c := &Config{Path: path, Values: map[string]string{}}
	err := decode(path, data, func(d *decoder, root *yaml.Node) { d.config(root, c) })
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (d *decoder) config(n *yaml.Node, c *Config) {
	version := false
	fields := map[string]func(*yaml.Node){
		"version":       func(n *yaml.Node) { version = true; d.integer(n, "version", 1, 1) },
		"audit":         func(n *yaml.Node) { d.audit(n, &c.Audit) },
		"users_may_set": func(n *yaml.Node) { c.UsersMaySet = d.list(n, "users_may_set", oneOf(Settings...)) },
	}
	for _, key := range Settings {
		fields[key] = func(n *yaml.Node) {
			value, ok := d.text(n, key)
			if ok && !slices.Contains([]string{Namespace, Snapshotter, Buildkit, Address, CNIPath}, key) && !filepath.IsAbs(value) {
				d.fail(n, "write an absolute path", "invalid %s: not absolute", key)
			}
			c.Values[key] = value
		}
	}
	d.fields(n, "the system configuration", fields)
	if n.Kind == yaml.MappingNode && !version {
		d.fail(n, "start the file with version: 1", "missing version")
	}
}

func (d *decoder) audit(n *yaml.Node, c *audit.Config) {
	d.fields(n, "audit", map[string]func(*yaml.Node){
		"to":         func(n *yaml.Node) { c.To = d.checked(n, "to", audit.CheckTarget) },
		"on_failure": func(n *yaml.Node) { c.OnFailure = d.checked(n, "on_failure", oneOf(audit.Continue, audit.Stop)) },
	})
	if n.Kind == yaml.MappingNode && c.To == "" && len(d.problems) == 0 {
		d.fail(n, "add to: journald, syslog, or the path of a file", "missing to in audit")
	}
}

// checked reads a text that check accepts and may rewrite.
func (d *decoder) checked(n *yaml.Node, what string, check func(string) (string, error)) string {
	s, ok := d.text(n, what)
	if !ok {
		return ""
	}
	s, err := check(s)
	if err != nil {
		d.fail(n, hint.Of(err), "invalid %s: %s", what, err)
	}
	return s
}

// Refused is a setting of the host that a caller may not choose.
type Refused struct {
	Key  string // one of Settings
	What string // the flag or variable with its value
	Path string // of the system configuration
}

func (r *Refused) Error() string {
	return fmt.Sprintf("%s is refused: only root chooses the %s", r.What, strings.ReplaceAll(r.Key, "_", " "))
}

// Hint returns advice for the user.
func (r *Refused) Hint() string {
	return fmt.Sprintf("omit it, or ask root to set %s, or to list it in users_may_set, in %s", r.Key, r.Path)
}

// Choice checks the value that a caller has chosen for a setting in place of the value
// hosts of the system; how names the flag or variable.
func (c *Config) Choice(who caller.Caller, r *Rules, key, how, value, hosts string) error {
	if !bound(who) || value == hosts || slices.Contains(c.UsersMaySet, key) {
		return nil
	}
	if r != nil && r.policy.Path == "" && r.exempt() {
		return nil
	}
	return &Refused{Key: key, What: how + " " + value, Path: filepath.Join(c.dir, ConfigFile)}
}
