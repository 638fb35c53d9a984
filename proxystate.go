package bottle

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/bot-bottle/bottle/internal/segment"
	"github.com/bot-bottle/bottle/runtime"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/netns"
)

// proxyState is what a bottle's proxy enforces. It is kept in the bottle's
// folder: it is what allow and deny change, and what holds when the proxy is
// started again.
type proxyState struct {
	Kind    string         `json:"kind"`
	Version string         `json:"version,omitempty"` // pipelock's
	Learn   bool           `json:"learn,omitempty"`
	Entries egress.Entries `json:"entries"`
	// Manifest and Bottle say where the entries came from.
	Manifest string `json:"manifest"`
	Bottle   string `json:"bottle"`
}

// Config2 is what Proxies works with.
type Config2 struct {
	Runtime *runtime.Client
	Network *netns.Manager
	Program string // bottle's own executable, for the log of a restarted proxy
	Log     *slog.Logger
	// StateDir is the directory on disk that has one directory for each bottle.
	StateDir string
}

// Proxies controls the egress proxies of running bottles.
type Proxies struct {
	rt      *runtime.Client
	net     *netns.Manager
	program string
	state   string
	log     *slog.Logger
}

// New returns the proxies of a containerd namespace.
func New(cfg Config2) *Proxies {
	return &Proxies{rt: cfg.Runtime, net: cfg.Network, program: cfg.Program, state: cfg.StateDir, log: cfg.Log}
}

func (p *Proxies) dir(name string) string { return p.rt.Dir(name) }

// proxyDir holds a proxy's files. Its folder config is mounted into the proxy as
// a whole, so that a file that is replaced in it is seen.
func (p *Proxies) proxyDir(name string) string { return filepath.Join(p.dir(name), "proxy") }

func (p *Proxies) proxyStateFile(name string) string {
	return filepath.Join(p.proxyDir(name), "policy.json")
}

// configFile is the name of the proxy's configuration, in its folder config.
func (s proxyState) configFile() string {
	if s.Kind == manifest.ProxyPipelock {
		return "pipelock.yaml"
	}
	return "proxy.json"
}

func (s proxyState) config() ([]byte, error) {
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
func (p *Proxies) storeProxyState(name string, s proxyState) error {
	conf, err := s.config()
	if err != nil {
		return fmt.Errorf("render the proxy's configuration: %w", err)
	}
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("write the proxy's policy: %w", err)
	}
	if err := replaceFile(p.proxyStateFile(name), data); err != nil {
		return fmt.Errorf("write the proxy's policy: %w", err)
	}
	if err := replaceFile(filepath.Join(p.proxyDir(name), "config", s.configFile()), conf); err != nil {
		return fmt.Errorf("write the proxy's configuration: %w", err)
	}
	return nil
}

func (p *Proxies) loadProxyState(name string) (s proxyState, err error) {
	data, err := os.ReadFile(p.proxyStateFile(name))
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		return s, fmt.Errorf("read the policy of %s: %w", name, err)
	}
	return s, nil
}

// replaceFile writes a file so that it is there whole or not at all.
func replaceFile(path string, data []byte) error {
	if err := os.WriteFile(path+".new", data, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// destinations are what the packet filter lets the proxy reach. Pipelock knows no
// ports, so for it the filter holds them, those of all entries together: it knows
// no names.
func (s proxyState) destinations() (netns.Destinations, error) {
	policy, err := s.Entries.Policy()
	if err != nil {
		return netns.Destinations{}, err
	}
	d := netns.Destinations{Private: policy.Private}
	if len(policy.PrivateNames) > 0 {
		d.Private = append(d.Private, egress.PrivateNets()...)
	}
	if s.Kind == manifest.ProxyPipelock {
		d.Ports = policy.Ports()
	}
	return d, nil
}

// proxyLock keeps those apart who change a bottle's policy, start its proxy again
// or remove the bottle. The bottle's folder must exist.
func (p *Proxies) proxyLock(name string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(p.dir(name), "proxy.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("lock %s: %w", name, runtime.ErrNotRunning)
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", name, err), f.Close())
	}
	return func() { _ = f.Close() }, nil // which unlocks
}

// goingFile says that the bottle is being removed: nothing is started in it any
// more. It goes with the folder.
func (p *Proxies) goingFile(name string) string { return filepath.Join(p.dir(name), "going") }

// markGoing waits for who changes the proxy, and keeps others from it.
func (p *Proxies) markGoing(name string) error {
	unlock, err := p.proxyLock(name)
	if errors.Is(err, runtime.ErrNotRunning) {
		return nil // no folder: nobody could
	}
	if err != nil {
		return err
	}
	defer unlock()
	return os.WriteFile(p.goingFile(name), nil, 0o600)
}

func (p *Proxies) going(name string) bool {
	_, err := os.Lstat(p.goingFile(name))
	return err == nil
}

// proxyCommand is what the proxy's task is started with.
func (s proxyState) command() []string {
	config := "/config/" + s.configFile()
	if s.Kind == manifest.ProxyPipelock {
		return []string{"run", "--listen", segment.ProxyAddrPort().String(), "--config", config}
	}
	return []string{"/bottle", "proxy", "--config", config}
}
