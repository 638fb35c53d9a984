// Package setup brings a host to the point where it can run bottles: it installs what is
// missing of containerd, gVisor, runc and the CNI plugins, from a source that the user names,
// and records each change so that Undo removes exactly what setup has made.
//
// Prepare creates nothing. Apply makes the changes of a plan; each one is recorded before it is
// made and is atomic, so that Apply or Undo can continue after a crash. A file that exists and
// was not written by setup is never replaced. The package connects to no containerd and prints
// nothing: its caller does both.
package setup

import (
	"context"
	"embed"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/bot-bottle/bottle/policy"
)

//go:embed files
var files embed.FS

// Paths that setup uses. Programs that the host may have itself are in the directories where
// containerd and sudo search; everything else is in one directory of its own.
const (
	privateDir = "/usr/local/lib/bottle"
	privateBin = privateDir + "/bin"
	privateCNI = privateDir + "/cni"
	programDir = "/usr/local/bin"

	unitName       = "bottle-containerd.service"
	unitPath       = "/etc/systemd/system/" + unitName
	containerdConf = "/etc/bottle/containerd.toml"
	tmpfilesPath   = "/etc/tmpfiles.d/bottle.conf"
	recordPath     = "/var/lib/bottle-setup/record.json"
	containerdRoot = "/var/lib/bottle-containerd"
	containerdRun  = "/run/bottle-containerd"
	// shimSockets is where gVisor's shim, whatever containerd it has, creates its sockets.
	shimSockets = "/run/containerd/s"

	// PrivateAddress is the socket of the containerd that setup installs.
	PrivateAddress = containerdRun + "/containerd.sock"
)

// Parts of a host that a bottle needs.
const (
	PartContainerd = "containerd"
	PartGVisor     = "gVisor"
	PartRunc       = "runc"
	PartCNI        = "CNI plugins"
)

// Config describes the host and how to act on it.
type Config struct {
	// Root is the directory of the host's files; empty: "/".
	Root string
	// Address is the socket of containerd that bottle uses now, and CNIPath its list of
	// plugin directories.
	Address, CNIPath string
	// Arch is the host's architecture, as Go and the releases call it.
	Arch string
	// Version returns the version of the containerd at a socket.
	Version func(ctx context.Context, address string) (string, error)
	// Notify is called with a line about each step that takes time.
	Notify func(text string)
	// Copied is called while a release file is fetched, with the number of bytes.
	Copied func(name string, n int64)
	// Command runs a program; nil: a program of the host.
	Command func(ctx context.Context, name string, args ...string) ([]byte, error)
}

func (c Config) path(p string) string { return filepath.Join("/", c.Root, p) }

func (c Config) exists(p string) bool {
	_, err := os.Lstat(c.path(p))
	return err == nil
}

func (c Config) notify(text string) {
	if c.Notify != nil {
		c.Notify(text)
	}
}

func (c Config) command(ctx context.Context, name string, args ...string) ([]byte, error) {
	if c.Command != nil {
		return c.Command(ctx, name, args...)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	return cmd.CombinedOutput()
}

// systemd reports whether systemd manages this host (sd_booted(3)).
func (c Config) systemd() bool { return c.exists("/run/systemd/system") }

func (c Config) configFile() string { return filepath.Join(policy.Dir, policy.ConfigFile) }

// Change is one change of a plan, or of an undo.
type Change struct {
	Action string `json:"action"` // such as "create"
	Target string `json:"target"` // a path, or the name of a package or unit
	Detail string `json:"detail,omitempty"`
}

// Actions of changes.
const (
	ActionPackage = "install package"
	ActionCreate  = "create"
	ActionReplace = "replace"
	ActionEdit    = "edit"
	ActionStart   = "enable and start"
	ActionRestart = "restart"
	ActionRemove  = "remove"
	ActionRestore = "restore"
	ActionStop    = "stop and disable"
	ActionKeep    = "keep"
)

// Part is the state of one part of the host.
type Part struct {
	Name  string `json:"name"`
	Found string `json:"found,omitempty"` // what the host has; empty: nothing usable
	// Source is where the part will come from; empty: it stays as it is.
	Source string `json:"source,omitempty"`
}
