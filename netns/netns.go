// Package netns creates and removes a bottle's network: two network namespaces,
// the private segment that connects them, and the proxy's attachment to the
// host. Only the root package uses it, and it is the only package that runs CNI
// plugins or uses netlink and nftables.
//
// A bottle's network:
//
//	agent's namespace    eth0 10.77.0.2/30, nothing else; no default route
//	proxy's namespace    internal0 10.77.0.1/30, a bridge with the agent's veth;
//	                     eth0 with an address of the egress network
//	host                 bottle0, the egress network's bridge; table inet bottle
//
// The internal segment does not exist in the host's namespace. The only state is
// what the kernel and the files under RunDir show: namespaces pinned by name in
// the bottle's own directory, host-local's leases, the ports of the bridge. A
// process may therefore be killed at any point, and Remove by name cleans up
// after it.
//
// The package must never change a rule, a route or an interface of the host that
// it did not create, with two exceptions: it appends two rules to each chain of
// the host that drops forwarded packets by default, and CNI's bridge plugin turns
// on net.ipv4.ip_forward. Removing the last bottle reverts both.
package netns

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	cniconf "github.com/bot-bottle/bottle/cni-conf"
)

// Config holds the paths that a Manager uses.
type Config struct {
	RunDir     string       // on tmpfs; bottle directories are RunDir/<namespace>/<name>
	PluginDirs []string     // searched in order for CNI plugins
	ConfDir    string       // optional directory of conflists that replace the embedded ones
	Log        *slog.Logger // nil: silent
}

// nicName is the name of the interface in both namespaces.
const nicName = "eth0"

// Manager creates and removes the networks of bottles on this host. Its methods
// may be called concurrently, also by several processes.
type Manager struct {
	cfg   Config
	log   *slog.Logger
	confs func() (*cniconf.Networks, error)
	// kernel is the evidence of this process's check of the kernel; nil: none was done.
	kernel atomic.Pointer[string]
}

// New returns a Manager. It reads nothing from the host yet: an invalid CNI
// configuration is reported by the method that needs it.
func New(cfg Config) (*Manager, error) {
	if !filepath.IsAbs(cfg.RunDir) {
		return nil, fmt.Errorf("network: run directory %q is not an absolute path", cfg.RunDir)
	}
	cfg.RunDir = filepath.Clean(cfg.RunDir)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Manager{cfg: cfg, log: cfg.Log, confs: sync.OnceValues(func() (*cniconf.Networks, error) {
		return cniconf.Load(cfg.ConfDir)
	})}, nil
}

// AgentPath returns the path at which the agent's network namespace is pinned;
// dir is the bottle's directory.
func AgentPath(dir string) string { return filepath.Join(dir, "agent.netns") }

// ProxyPath returns the path at which the proxy's network namespace is pinned.
func ProxyPath(dir string) string { return filepath.Join(dir, "proxy.netns") }

// cniDir holds libcni's cache and the bottle's egress policy. Each bottle has its
// own, so that removing another bottle cannot delete it.
func cniDir(dir string) string { return filepath.Join(dir, "cni") }

func (m *Manager) netDir() string   { return filepath.Join(m.cfg.RunDir, "net") }
func (m *Manager) lockFile() string { return filepath.Join(m.netDir(), "lock") }
func (m *Manager) ipamDir() string  { return filepath.Join(m.netDir(), "ipam") }
func (m *Manager) sysctlFile() string {
	return filepath.Join(m.netDir(), "ip_forward.before")
}

// idSeparator cannot occur in a containerd identifier, so an id can be split
// into its parts again.
const idSeparator = "--"

// containerID returns the bottle's id for CNI. It joins the last two elements of
// the bottle's directory, which must be RunDir/<namespace>/<name>.
func (m *Manager) containerID(dir string) (string, error) {
	rel, err := filepath.Rel(m.cfg.RunDir, dir)
	parts := strings.Split(rel, string(filepath.Separator))
	if err != nil || len(parts) != 2 || parts[0] == ".." || parts[0] == "net" {
		return "", fmt.Errorf("network: %s is not a bottle directory under %s", dir, m.cfg.RunDir)
	}
	for _, p := range parts {
		if strings.Contains(p, idSeparator) || strings.HasPrefix(p, ".") {
			return "", fmt.Errorf("network: invalid containerd identifier %q in %s", p, dir)
		}
	}
	return strings.Join(parts, idSeparator), nil
}

// bottleDir returns the directory of the bottle with the given id.
func (m *Manager) bottleDir(id string) (string, error) {
	ns, name, ok := strings.Cut(id, idSeparator)
	if !ok || ns == "" || name == "" {
		return "", fmt.Errorf("network: invalid bottle id %q", id)
	}
	return filepath.Join(m.cfg.RunDir, ns, name), nil
}
