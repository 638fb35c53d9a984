// Package hostconfig names where bottle's configuration comes from, and its defaults.
package hostconfig

import (
	"slices"
	"strings"
)

// Variables override the configuration.
const (
	Address     = "CONTAINERD_ADDRESS"
	Namespace   = "CONTAINERD_NAMESPACE"
	Snapshotter = "CONTAINERD_SNAPSHOTTER"
	RunDir      = "BOTTLE_RUN_DIR"
	StateDir    = "BOTTLE_STATE_DIR"
	CNIPath     = "CNI_PATH"
	CNIConf     = "BOTTLE_CNI_CONF"
	HostsDir    = "BOTTLE_HOSTS_DIR"
	Buildkit    = "BUILDKIT_HOST"
)

// Variables returns all of them.
func Variables() []string {
	return []string{Address, Namespace, Snapshotter, RunDir, StateDir, CNIPath, CNIConf, HostsDir, Buildkit}
}

// Defaults.
const (
	DefaultAddress   = "/run/containerd/containerd.sock"
	DefaultNamespace = "bottle"
	DefaultRunDir    = "/run/bottle"
	DefaultStateDir  = "/var/lib/bottle"
)

// WorkspacesDir contains the workspaces, by namespace, in the state directory. The name of a
// containerd namespace never begins with a dot.
const WorkspacesDir = ".workspaces"

// SystemDir contains the configuration by the administrator of the host.
const SystemDir = "/etc/bottle"

// Files of SystemDir.
const (
	SystemFile = "config.yaml"
	PolicyFile = "policy.yaml"
)

// UserFile is the user's own configuration file, in their home.
const UserFile = ".config/bottle/config.yaml"

// Keys of the configuration files.
const (
	KeyAddress     = "address"       // containerd's socket
	KeyNamespace   = "namespace"     // of containerd
	KeySnapshotter = "snapshotter"   // of containerd
	KeyRunDir      = "run_dir"       // on tmpfs
	KeyStateDir    = "state_dir"     // on disk
	KeyCNIPath     = "cni_path"      // directories of CNI plugins
	KeyCNIConf     = "cni_conf"      // directory of network configurations
	KeyHostsDir    = "hosts_dir"     // directory of registries' hosts.toml files
	KeyBuildkit    = "buildkit_host" // address of a buildkitd
)

// Keys returns all of them.
func Keys() []string {
	return []string{KeyAddress, KeyBuildkit, KeyCNIConf, KeyCNIPath, KeyHostsDir, KeyNamespace, KeyRunDir, KeySnapshotter, KeyStateDir}
}

// plainValue are characters that need no quotes in YAML.
const plainValue = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-"

// Plain reads a configuration that consists of its version and settings, each on a line of
// its own and without quotes. ok is false for every other one, valid or not, which package
// policy is to read. FuzzPlain in package policy compares the two.
func Plain(data []byte) (values map[string]string, ok bool) {
	values = map[string]string{}
	version := false
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" || line[0] == '#' && !strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r > '~' }) {
			continue
		}
		key, value, found := strings.Cut(line, ": ")
		switch {
		case !found:
			return nil, false
		case key == "version" && value == "1" && !version:
			version = true
		case values[key] != "" || !slices.Contains(Keys(), key) || strings.Trim(value, plainValue) != "" || !isText(key, value):
			return nil, false
		default:
			values[key] = value
		}
	}
	return values, version
}

// isText reports whether a plain value is certainly valid, and text for YAML: not a number, a
// date or a boolean.
func isText(key, value string) bool {
	if key != KeyNamespace && key != KeySnapshotter {
		return strings.HasPrefix(value, "/")
	}
	return value != "" && 'a' <= value[0] && value[0] <= 'z' && strings.Contains(value, "-")
}
