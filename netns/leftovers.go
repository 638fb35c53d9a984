package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/bot-bottle/bottle/cni-conf"
)

// Resource is something that bottle created on this host.
type Resource struct {
	Kind string `json:"kind"` // "namespace", "lease", "bridge", "nftables table", "nftables rules", "sysctl" or "directory"
	Name string `json:"name"`
	// Dir is the directory of the bottle that owns it; empty if bottles share it.
	Dir string `json:"dir,omitempty"`
}

// Leftovers lists the resources that exist under bottle's names, of running
// bottles as well as of incomplete ones that a crash left. It changes nothing.
func (m *Manager) Leftovers(ctx context.Context) ([]Resource, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	confs, err := m.confs()
	if err != nil {
		return nil, err
	}
	var out []Resource
	for _, path := range []func(string) string{AgentPath, ProxyPath} {
		files, err := filepath.Glob(path(filepath.Join(m.cfg.RunDir, "*", "*")))
		if err != nil {
			return nil, fmt.Errorf("list network namespaces: %w", err)
		}
		for _, f := range files {
			out = append(out, Resource{"namespace", f, filepath.Dir(f)})
		}
	}
	leases, err := m.leases(confs.Egress.Name)
	if err != nil {
		return nil, err
	}
	for _, l := range leases {
		dir, _ := m.bottleDir(l.id) // empty if the lease is not a bottle's
		out = append(out, Resource{"lease", l.addr.String(), dir})
	}
	shared, err := m.shared(confs.Egress)
	return append(out, shared...), err
}

// shared lists what bottles share on the host.
func (m *Manager) shared(conf *cniconf.List) ([]Resource, error) {
	var out []Resource
	bridge, err := linkByName(conf.Bridge)
	if err != nil {
		return nil, err
	}
	if bridge != nil {
		out = append(out, Resource{Kind: "bridge", Name: conf.Bridge})
	}
	shape, err := tableShape()
	if err != nil {
		return nil, err
	}
	if shape != nil {
		out = append(out, Resource{Kind: "nftables table", Name: "inet " + tableName})
	}
	marked, err := markedChains()
	if err != nil {
		return nil, err
	}
	for _, c := range marked {
		out = append(out, Resource{Kind: "nftables rules", Name: c})
	}
	for _, f := range []struct{ kind, path string }{{"sysctl", m.sysctlFile()}, {"directory", m.netDir()}} {
		_, err := os.Lstat(f.path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("check %s: %w", f.path, err)
		}
		if err == nil {
			out = append(out, Resource{Kind: f.kind, Name: f.path})
		}
	}
	return out, nil
}
