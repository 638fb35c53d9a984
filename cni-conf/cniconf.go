// Package cniconf provides the CNI configurations of bottle's two networks. They are
// embedded; a directory on the host may override either. It only parses and
// validates: package netns, its only caller, creates the networks.
package cniconf

import (
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/bot-bottle/bottle/internal/segment"
)

//go:embed egress.conflist internal.conflist
var embedded embed.FS

// Names of the files, embedded and in the directory that overrides them.
const (
	EgressFile   = "egress.conflist"
	InternalFile = "internal.conflist"
)

// maxBridgeName is the maximum length of an interface name (IFNAMSIZ minus the NUL,
// linux/if.h).
const maxBridgeName = 15

// List is the validated CNI configuration list of one network.
type List struct {
	Name    string       // of the network
	Source  string       // the file, or "embedded" and its name
	Bridge  string       // the interface that the bridge plugin creates
	Subnet  netip.Prefix // egress: the pool of addresses; internal: the segment
	Plugins []string     // every plugin that is run, including IPAM's, without duplicates
	// Simple: the only plugin is the bridge plugin, with no option that makes it create more than a
	// bridge, its ports, their addresses and routes, and host-local's leases.
	Simple bool

	raw []byte
}

// Networks are a bottle's two networks.
type Networks struct {
	Egress   *List // proxy and host
	Internal *List // agent and proxy
}

// Load returns both networks. A file in dir overrides the embedded one of the same
// name; dir may be empty or missing.
func Load(dir string) (*Networks, error) {
	egress, err := load(dir, EgressFile, checkEgress)
	if err != nil {
		return nil, err
	}
	internal, err := load(dir, InternalFile, checkInternal)
	if err != nil {
		return nil, err
	}
	if egress.Name == internal.Name {
		return nil, fmt.Errorf("CNI configurations %s and %s: both networks have the name %q", egress.Source, internal.Source, egress.Name)
	}
	return &Networks{Egress: egress, Internal: internal}, nil
}

func load(dir, file string, check func(*List, *plugin) error) (*List, error) {
	data, source, err := read(dir, file)
	if err != nil {
		return nil, err
	}
	l, err := parse(data, check)
	if err != nil {
		return nil, fmt.Errorf("CNI configuration %s: %w", source, err)
	}
	l.Source = source
	return l, nil
}

func read(dir, file string) (data []byte, source string, err error) {
	if dir != "" {
		source = filepath.Join(dir, file)
		data, err = os.ReadFile(source)
		if err == nil {
			return data, source, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, "", fmt.Errorf("read CNI configuration: %w", err)
		}
	}
	data, err = embedded.ReadFile(file)
	return data, "embedded " + file, err
}

// conflist and plugin are the parts of a CNI configuration list that bottle reads
// (https://www.cni.dev/docs/spec/#configuration-format).
type conflist struct {
	Name    string    `json:"name"`
	Plugins []*plugin `json:"plugins"`
}

type plugin struct {
	Type        string `json:"type"`
	Bridge      string `json:"bridge"`
	IsGateway   bool   `json:"isGateway"`
	IsDefaultGW bool   `json:"isDefaultGateway"`
	IPMasq      bool   `json:"ipMasq"`
	IPAM        struct {
		Type      string      `json:"type"`
		Subnet    string      `json:"subnet"`
		Ranges    [][]ipRange `json:"ranges"`
		Addresses []struct {
			Address string `json:"address"`
		} `json:"addresses"`
		Routes []json.RawMessage `json:"routes"`
	} `json:"ipam"`
}

type ipRange struct {
	Subnet string `json:"subnet"`
}

func parse(data []byte, check func(*List, *plugin) error) (*List, error) {
	var c conflist
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, err
	}
	if !isFileName(c.Name) {
		return nil, fmt.Errorf("invalid name %q: not usable as a directory name", c.Name)
	}
	if len(c.Plugins) == 0 || c.Plugins[0] == nil || c.Plugins[0].Type != "bridge" {
		return nil, errors.New(`the first plugin must have type "bridge"`)
	}
	first := c.Plugins[0]
	if len(first.Bridge) > maxBridgeName || !isFileName(first.Bridge) {
		return nil, fmt.Errorf("invalid bridge %q: an interface name has 1 to %d characters and no slash", first.Bridge, maxBridgeName)
	}
	l := &List{Name: c.Name, Bridge: first.Bridge, raw: data, Plugins: types(c.Plugins)}
	l.Simple = len(c.Plugins) == 1 && isSimple(data)
	return l, check(l, first)
}

// simpleOptions are the options of the bridge plugin that concern the bridge and its ports only.
var simpleOptions = []string{
	"type", "bridge", "isGateway", "isDefaultGateway", "forceAddress", "hairpinMode", "promiscMode", "mtu", "portIsolation", "ipam",
}

// isSimple reports whether the first plugin of a list has no other options, or has them switched
// off. An option that is not known here may leave something that only the plugin can remove.
func isSimple(data []byte) bool {
	var c struct{ Plugins []map[string]json.RawMessage }
	if json.Unmarshal(data, &c) != nil || len(c.Plugins) == 0 {
		return false
	}
	for option, value := range c.Plugins[0] {
		if !slices.Contains(simpleOptions, option) && string(value) != "false" {
			return false
		}
	}
	return true
}

// isFileName reports whether a name is a single path element.
func isFileName(name string) bool {
	return name != "" && name != "." && name != ".." && name == filepath.Base(name)
}

// types lists the plugins that are run, without duplicates.
func types(plugins []*plugin) (out []string) {
	seen := map[string]bool{"": true}
	for _, p := range plugins {
		for _, t := range []string{p.Type, p.IPAM.Type} {
			if !seen[t] {
				seen[t] = true
				out = append(out, t)
			}
		}
	}
	return out
}

func checkEgress(l *List, p *plugin) error {
	switch {
	case !p.IsGateway && !p.IsDefaultGW:
		return errors.New(`"isGateway" must be true: the proxy has no other route`)
	case p.IPMasq:
		return errors.New(`"ipMasq" must be false: bottle's own nftables table masquerades`)
	case p.IPAM.Type != "host-local":
		return fmt.Errorf(`unsupported ipam type %q: must be "host-local", whose leases bottle reads`, p.IPAM.Type)
	}
	subnets := []string{}
	if p.IPAM.Subnet != "" {
		subnets = append(subnets, p.IPAM.Subnet)
	}
	for _, set := range p.IPAM.Ranges {
		for _, r := range set {
			subnets = append(subnets, r.Subnet)
		}
	}
	if len(subnets) != 1 {
		return fmt.Errorf("ipam has %d subnets, want 1", len(subnets))
	}
	subnet, err := netip.ParsePrefix(subnets[0])
	if err != nil {
		return fmt.Errorf("invalid ipam subnet: %w", err)
	}
	if !subnet.Addr().Is4() || subnet.Bits() > 29 {
		return fmt.Errorf("invalid ipam subnet %s: must be IPv4, /29 or larger", subnet)
	}
	l.Subnet = subnet.Masked()
	return nil
}

func checkInternal(l *List, p *plugin) error {
	switch {
	case p.IsGateway, p.IsDefaultGW, p.IPMasq:
		return errors.New(`"isGateway", "isDefaultGateway" and "ipMasq" must be false: the segment has no route out`)
	case p.IPAM.Type != "static" || len(p.IPAM.Addresses) != 1 || p.IPAM.Addresses[0].Address != segment.Agent.String():
		return fmt.Errorf(`ipam must have type "static" and the single address %s`, segment.Agent)
	case len(p.IPAM.Routes) != 0:
		return errors.New("ipam must have no routes: the agent reaches the segment only")
	}
	l.Subnet = segment.Agent.Masked()
	return nil
}

// JSON returns the list in the format of CNI plugins. A non-empty dataDir is where
// host-local keeps its leases.
func (l *List) JSON(dataDir string) ([]byte, error) {
	if dataDir == "" {
		return l.raw, nil
	}
	var list map[string]any
	if err := json.Unmarshal(l.raw, &list); err != nil {
		return nil, fmt.Errorf("CNI configuration %s: %w", l.Source, err)
	}
	plugins, _ := list["plugins"].([]any)
	for _, p := range plugins {
		m, _ := p.(map[string]any)
		if ipam, ok := m["ipam"].(map[string]any); ok {
			ipam["dataDir"] = dataDir
		}
	}
	out, err := json.Marshal(list)
	if err != nil {
		return nil, fmt.Errorf("CNI configuration %s: %w", l.Source, err)
	}
	return out, nil
}
