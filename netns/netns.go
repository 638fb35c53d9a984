// Package netns makes a bottle's network and takes it away: two network
// namespaces, the private segment that joins them, and the proxy's attachment
// to the host. It is used by the root package alone, and is the only one that
// runs CNI plugins or speaks netlink and nftables.
//
// What a bottle has:
//
//	agent's namespace    eth0 10.77.0.2/30, nothing else; no default route
//	proxy's namespace    internal0 10.77.0.1/30, a bridge with the agent's veth;
//	                     eth0 with an address of the egress network
//	host                 bottle0, the egress network's bridge; table inet bottle
//
// The internal segment does not exist in the host's namespace. All state is
// what the kernel and the files under RunDir show: namespaces pinned by name in
// the bottle's own folder, host-local's leases, the ports of the bridge. So a
// process may be killed at any point, and Remove by name takes away what it
// left.
//
// The package must never change a rule, a route or an interface of the host's
// that it did not make. It adds two rules to the end of a chain of the host's that
// drops forwarded packets by default, and the one setting of the host's that it
// changes is net.ipv4.ip_forward, which CNI's bridge plugin turns on; whoever
// leaves last puts both back.
package netns

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"

	"github.com/bot-bottle/bottle/cni-conf"
)

// Config says where things are.
type Config struct {
	RunDir     string       // on tmpfs; bottles' folders are RunDir/<namespace>/<name>
	PluginDirs []string     // searched for CNI plugins, in this order
	ConfDir    string       // may hold conflists in place of the embedded ones
	Log        *slog.Logger // nil: silent
}

// Names and addresses that are the same in every bottle.
const (
	nicName   = "eth0" // in both namespaces
	proxyPort = 8888
)

// ProxyAddress is the proxy's address on the internal segment.
var ProxyAddress = netip.PrefixFrom(cniconf.AgentAddress.Masked().Addr().Next(), cniconf.AgentAddress.Bits())

// Manager makes and removes bottles' networks on this host. Its methods may be
// called at the same time, by several processes too.
type Manager struct {
	cfg   Config
	log   *slog.Logger
	confs func() (*cniconf.Networks, error)
}

// New returns a Manager. It looks at nothing yet: a broken configuration is
// reported by the method that needs it.
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

// AgentPath is where the agent's network namespace is pinned, dir being the
// bottle's folder.
func AgentPath(dir string) string { return filepath.Join(dir, "agent.netns") }

// ProxyPath is where the proxy's network namespace is pinned.
func ProxyPath(dir string) string { return filepath.Join(dir, "proxy.netns") }

// cniDir holds libcni's cache and the bottle's egress policy. It is the
// bottle's own, so that nobody else's last step can take it away.
func cniDir(dir string) string { return filepath.Join(dir, "cni") }

func (m *Manager) netDir() string   { return filepath.Join(m.cfg.RunDir, "net") }
func (m *Manager) lockFile() string { return filepath.Join(m.netDir(), "lock") }
func (m *Manager) ipamDir() string  { return filepath.Join(m.netDir(), "ipam") }
func (m *Manager) sysctlFile() string {
	return filepath.Join(m.netDir(), "ip_forward.before")
}

// idSeparator cannot be in a containerd identifier, so an id can be taken
// apart again.
const idSeparator = "--"

// containerID is the bottle's id for CNI, made of the last two elements of its
// folder, which must be RunDir/<namespace>/<name>.
func (m *Manager) containerID(dir string) (string, error) {
	rel, err := filepath.Rel(m.cfg.RunDir, dir)
	parts := strings.Split(rel, string(filepath.Separator))
	if err != nil || len(parts) != 2 || parts[0] == ".." || parts[0] == "net" {
		return "", fmt.Errorf("network: %s is not a bottle's folder under %s", dir, m.cfg.RunDir)
	}
	for _, p := range parts {
		if strings.Contains(p, idSeparator) || strings.HasPrefix(p, ".") {
			return "", fmt.Errorf("network: %q in %s is no containerd identifier", p, dir)
		}
	}
	return strings.Join(parts, idSeparator), nil
}

// bottleDir is the folder of the bottle that an id names.
func (m *Manager) bottleDir(id string) (string, error) {
	ns, name, ok := strings.Cut(id, idSeparator)
	if !ok || ns == "" || name == "" {
		return "", errors.New("network: " + id + " is no bottle's id")
	}
	return filepath.Join(m.cfg.RunDir, ns, name), nil
}
