package proxy

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/atomicfile"
	"github.com/bot-bottle/bottle/internal/segment"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/netns"
)

// State is the policy that a bottle's proxy enforces. It is stored in the bottle's
// directory, changed by Allow and Deny, and read again when the proxy is restarted.
type State struct {
	Kind    string         `json:"kind"`
	Version string         `json:"version,omitempty"` // of pipelock
	Learn   bool           `json:"learn,omitempty"`
	Entries egress.Entries `json:"entries"`
	// Hostname is the sandbox's: requests for it need no proxy.
	Hostname string `json:"hostname,omitempty"`
	// Inject: the proxy terminates TLS with what StoreSecrets has written, to insert secrets or
	// to check requests.
	Inject bool `json:"inject,omitempty"`
	// Manifest and Bottle say where the entries came from.
	Manifest string `json:"manifest"`
	Bottle   string `json:"bottle"`
}

// Front reports whether a process of its own inserts the secrets, in front of the proxy.
func (s State) Front() bool { return s.Inject && s.Kind == manifest.ProxyPipelock }

// listen returns the address and port that the proxy listens on.
func (s State) listen() netip.AddrPort {
	if s.Front() {
		return segment.BehindAddrPort()
	}
	return segment.ProxyAddrPort()
}

// frontFile is the name of the configuration of the process in front of a proxy.
const frontFile = "front.json"

// frontConfig returns the configuration of the process in front of the proxy.
func (s State) frontConfig() ([]byte, error) {
	return json.MarshalIndent(egress.Config{
		Listen: segment.ProxyAddrPort().String(), Upstream: s.listen().String(), Inject: injectFiles(),
	}, "", "  ")
}

func injectFiles() *egress.Inject {
	return &egress.Inject{Secrets: "/config/" + secretsFile, Roots: "/config/" + rootsFile}
}

// configFile returns the name of the proxy's configuration file.
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
	config := egress.Config{Listen: segment.ProxyAddrPort().String(), Entries: s.Entries, Learn: s.Learn}
	if s.Inject {
		config.Inject = injectFiles()
	}
	if s.Hostname != "" {
		config.SelfNames = []string{s.Hostname}
	}
	return json.MarshalIndent(config, "", "  ")
}

// Command returns the command of the proxy's task.
func (s State) Command() []string {
	config := "/config/" + s.configFile()
	if s.Kind == manifest.ProxyPipelock {
		return []string{"run", "--listen", s.listen().String(), "--config", config}
	}
	return []string{"/bottle", "proxy", "--config", config}
}

// FrontCommand returns the command of the process in front of a proxy.
func FrontCommand() []string { return []string{"/bottle", "proxy", "--config", "/config/" + frontFile} }

// Destinations returns what the packet filter lets the proxy reach. Pipelock has no
// notion of ports, so the filter restricts it to the ports of all entries together: the
// filter has no notion of names.
func (s State) Destinations() (netns.Destinations, error) {
	policy, err := s.Entries.Policy()
	if err != nil {
		return netns.Destinations{}, err
	}
	d := netns.Destinations{Private: policy.Private, Front: s.Front()}
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

func (m *Manager) stateFile(name string) string {
	return filepath.Join(m.Dir(name), "policy.json")
}

// Store writes the state, and then the proxy's configuration.
func (m *Manager) Store(name string, s State) error {
	conf, err := s.config()
	if err != nil {
		return fmt.Errorf("render proxy configuration: %w", err)
	}
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("write proxy policy: %w", err)
	}
	if err := atomicfile.Write(m.stateFile(name), data, 0o644); err != nil {
		return fmt.Errorf("write proxy policy: %w", err)
	}
	if err := atomicfile.Write(m.configFile(name, s), conf, 0o644); err != nil {
		return fmt.Errorf("write proxy configuration: %w", err)
	}
	return nil
}

// StoreFront writes the configuration of the process in front of the proxy.
func (m *Manager) StoreFront(name string, s State) error {
	conf, err := s.frontConfig()
	if err == nil {
		err = atomicfile.Write(filepath.Join(m.FrontDir(name), "config", frontFile), conf, 0o644)
	}
	if err != nil {
		return fmt.Errorf("write configuration in front of the proxy: %w", err)
	}
	return nil
}

// Load reads the state that Store has written.
func (m *Manager) Load(name string) (s State, err error) {
	data, err := os.ReadFile(m.stateFile(name))
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		return s, fmt.Errorf("read proxy policy of %s: %w", name, err)
	}
	return s, nil
}
