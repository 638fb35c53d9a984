package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/bot-bottle/bottle/internal/atomicfile"
	"github.com/bot-bottle/bottle/internal/filelock"
	"github.com/bot-bottle/bottle/internal/segment"
	"github.com/bot-bottle/bottle/runtime"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/netns"
)

// proxyState is what a bottle's proxy enforces. It is kept in the bottle's
// folder: it is what allow and deny change, and what holds when the proxy is
// started again.
type State struct {
	Kind    string         `json:"kind"`
	Version string         `json:"version,omitempty"` // pipelock's
	Learn   bool           `json:"learn,omitempty"`
	Entries egress.Entries `json:"entries"`
	// Manifest and Bottle say where the entries came from.
	Manifest string `json:"manifest"`
	Bottle   string `json:"bottle"`
}

// Config2 is what Proxies works with.
type Config struct {
	Runtime *runtime.Client
	Network *netns.Manager
	Program string // bottle's own executable, for the log of a restarted proxy
	Log     *slog.Logger
	// StateDir is the directory on disk that has one directory for each bottle.
	StateDir string
}

// Proxies controls the egress proxies of running bottles.
type Manager struct {
	rt      *runtime.Client
	net     *netns.Manager
	program string
	state   string
	logger  *slog.Logger

	// StartTimeout bounds how long a proxy may take to answer its health check.
	// New sets 30 seconds.
	StartTimeout time.Duration
}

// New returns the proxies of a containerd namespace.
func New(cfg Config) *Manager {
	return &Manager{
		rt: cfg.Runtime, net: cfg.Network, program: cfg.Program, state: cfg.StateDir, logger: cfg.Log,
		StartTimeout: 30 * time.Second,
	}
}

func (p *Manager) bottleDir(name string) string { return p.rt.Dir(name) }

// proxyDir holds a proxy's files. Its folder config is mounted into the proxy as
// a whole, so that a file that is replaced in it is seen.
func (p *Manager) Dir(name string) string { return filepath.Join(p.bottleDir(name), "proxy") }

func (p *Manager) stateFile(name string) string {
	return filepath.Join(p.Dir(name), "policy.json")
}

// configFile is the name of the proxy's configuration, in its folder config.
func (s State) configFile() string {
	if s.Kind == manifest.ProxyPipelock {
		return "pipelock.yaml"
	}
	return "proxy.json"
}

func (s State) config() ([]byte, error) {
	if s.Kind == manifest.ProxyPipelock {
		policy, err := s.Entries.Policy()
		if err != nil {
			return nil, err
		}
		return policy.Render(s.Version)
	}
	return json.MarshalIndent(egress.Config{Listen: segment.ProxyAddrPort().String(), Entries: s.Entries, Learn: s.Learn}, "", "  ")
}

// store writes the state, and then the proxy's configuration.
func (p *Manager) Store(name string, s State) error {
	conf, err := s.config()
	if err != nil {
		return fmt.Errorf("render the proxy's configuration: %w", err)
	}
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("write the proxy's policy: %w", err)
	}
	if err := atomicfile.Write(p.stateFile(name), data, 0o644); err != nil {
		return fmt.Errorf("write the proxy's policy: %w", err)
	}
	if err := atomicfile.Write(filepath.Join(p.Dir(name), "config", s.configFile()), conf, 0o644); err != nil {
		return fmt.Errorf("write the proxy's configuration: %w", err)
	}
	return nil
}

func (p *Manager) Load(name string) (s State, err error) {
	data, err := os.ReadFile(p.stateFile(name))
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		return s, fmt.Errorf("read the policy of %s: %w", name, err)
	}
	return s, nil
}

// destinations are what the packet filter lets the proxy reach. Pipelock knows no
// ports, so for it the filter holds them, those of all entries together: it knows
// no names.
func (s State) Destinations() (netns.Destinations, error) {
	policy, err := s.Entries.Policy()
	if err != nil {
		return netns.Destinations{}, err
	}
	d := netns.Destinations{Private: policy.Private}
	if len(policy.PrivateNames) > 0 {
		d.Private = append(d.Private, egress.PrivateNets()...)
	}
	if s.Kind == manifest.ProxyPipelock {
		for _, r := range policy.PortRanges() {
			d.Ports = append(d.Ports, netns.PortRange(r))
		}
	}
	return d, nil
}

// lock serializes changes of a bottle's policy, restarts of its proxy and the removal
// of the bottle. The error wraps runtime.ErrNotRunning if the bottle's directory does
// not exist.
func (p *Manager) lock(ctx context.Context, name string) (unlock func(), err error) {
	l, err := filelock.Create(ctx, filepath.Join(p.bottleDir(name), "proxy.lock"), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("lock %s: %w", name, runtime.ErrNotRunning)
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return func() { _ = l.Release() }, nil // closing the file cannot fail in a way that matters
}

// goingFile says that the bottle is being removed: nothing is started in it any
// more. It goes with the folder.
func (p *Manager) RemovingFile(name string) string {
	return filepath.Join(p.bottleDir(name), "removing")
}

// markGoing waits for who changes the proxy, and keeps others from it.
func (p *Manager) MarkRemoving(ctx context.Context, name string) error {
	unlock, err := p.lock(ctx, name)
	if errors.Is(err, runtime.ErrNotRunning) {
		return nil // no folder: nobody could
	}
	if err != nil {
		return err
	}
	defer unlock()
	return os.WriteFile(p.RemovingFile(name), nil, 0o600)
}

func (p *Manager) removing(name string) bool {
	_, err := os.Lstat(p.RemovingFile(name))
	return err == nil
}

// proxyCommand is what the proxy's task is started with.
func (s State) Command() []string {
	config := "/config/" + s.configFile()
	if s.Kind == manifest.ProxyPipelock {
		return []string{"run", "--listen", segment.ProxyAddrPort().String(), "--config", config}
	}
	return []string{"/bottle", "proxy", "--config", config}
}
