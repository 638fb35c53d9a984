package netns

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/bot-bottle/bottle/cni-conf"
)

// pluginTimeout bounds one run of a network's plugins.
const pluginTimeout = 30 * time.Second

// network is one CNI network, configured for one bottle.
type network struct {
	conf *cniconf.List
	cni  *libcni.CNIConfig
	list *libcni.NetworkConfigList
	rt   *libcni.RuntimeConf
}

// network prepares to attach or detach the namespace pinned at nsPath. If it is
// not pinned, plugins are run without a namespace: they then free what is
// outside it.
func (m *Manager) network(conf *cniconf.List, dir, id, nsPath string) (*network, error) {
	data, err := conf.JSON(m.dataDir(conf))
	if err != nil {
		return nil, err
	}
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		return nil, fmt.Errorf("CNI configuration %s: %w", conf.Source, err)
	}
	if !pinned(nsPath) {
		nsPath = ""
	}
	return &network{
		conf: conf, list: list,
		cni: libcni.NewCNIConfigWithCacheDir(m.cfg.PluginDirs, cniDir(dir), newExec()),
		rt:  &libcni.RuntimeConf{ContainerID: id, NetNS: nsPath, IfName: nicName},
	}, nil
}

// dataDir returns where host-local keeps leases; the internal network has none.
func (m *Manager) dataDir(conf *cniconf.List) string {
	if slices.Contains(conf.Plugins, "host-local") {
		return m.ipamDir()
	}
	return ""
}

// add attaches the namespace. Plugins run to completion even if ctx is cancelled:
// a plugin that is killed midway may leave resources that its DEL does not find.
func (n *network) add(ctx context.Context) (*types100.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pluginTimeout)
	defer cancel()
	res, err := n.cni.AddNetworkList(ctx, n.list, n.rt)
	if err != nil {
		return nil, fmt.Errorf("attach to network %s: %w", n.conf.Name, err)
	}
	out, err := types100.NewResultFromResult(res)
	if err != nil {
		return nil, fmt.Errorf("attach to network %s: parse result: %w", n.conf.Name, err)
	}
	return out, nil
}

// del detaches the namespace. It succeeds if nothing is attached.
func (n *network) del(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pluginTimeout)
	defer cancel()
	if err := n.cni.DelNetworkList(ctx, n.list, n.rt); err != nil {
		return fmt.Errorf("detach from network %s: %w", n.conf.Name, err)
	}
	return nil
}

// findPlugin returns the path of a CNI plugin, as libcni would find it.
func (m *Manager) findPlugin(name string) (string, bool) {
	for _, d := range m.cfg.PluginDirs {
		path := filepath.Join(d, name)
		if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return path, true
		}
	}
	return "", false
}
