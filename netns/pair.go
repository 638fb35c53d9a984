package netns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/bot-bottle/bottle/internal/segment"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	cniconf "github.com/bot-bottle/bottle/cni-conf"
	"github.com/bot-bottle/bottle/internal/atomicfile"
)

// Pair is the network of one bottle: the agent's namespace and the proxy's.
type Pair struct {
	m     *Manager
	dir   string
	id    string
	confs *cniconf.Networks
}

// Create creates both namespaces and pins them in the bottle's directory dir, which
// must exist and be RunDir/<namespace>/<name>. In both, forwarding and IPv6 are off
// and lo is up. After an error nothing is left.
func (m *Manager) Create(ctx context.Context, dir string) (*Pair, error) {
	p, err := m.pair(dir)
	if err != nil {
		return nil, err
	}
	bottle, err := m.acquireBottle(ctx, p.dir)
	if err != nil {
		return nil, err
	}
	defer bottle.release()
	if err := pin(AgentPath(p.dir), setUpNS); err != nil {
		return nil, fmt.Errorf("agent's namespace: %w", err)
	}
	if err := pin(ProxyPath(p.dir), setUpNS); err != nil {
		return nil, errors.Join(fmt.Errorf("proxy's namespace: %w", err), unpin(AgentPath(p.dir)))
	}
	return p, nil
}

// pair returns the network of the bottle whose directory is dir, which may not exist yet.
func (m *Manager) pair(dir string) (*Pair, error) {
	dir = filepath.Clean(dir)
	id, err := m.containerID(dir)
	if err != nil {
		return nil, err
	}
	confs, err := m.confs()
	if err != nil {
		return nil, err
	}
	return &Pair{m: m, dir: dir, id: id, confs: confs}, nil
}

// setUpNS sets up the thread's namespace, which is new.
func setUpNS() error {
	if err := writeNSSettings(); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// AttachInternal connects the two namespaces by the internal segment, which exists
// only in them: CNI runs inside the proxy's. It may run concurrently with
// AttachEgress.
func (p *Pair) AttachInternal(ctx context.Context) error {
	n, err := p.m.network(p.confs.Internal, p.dir, p.id, AgentPath(p.dir))
	if err != nil {
		return err
	}
	return Do(ProxyPath(p.dir), func() error {
		if _, err := n.add(ctx); err != nil {
			return err
		}
		return setAddress(p.confs.Internal.Bridge, segment.Proxy)
	})
}

func setAddress(name string, addr netip.Prefix) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	ipnet := &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), addr.Addr().BitLen())}
	if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: ipnet}); err != nil {
		return fmt.Errorf("assign %s to %s: %w", addr, name, err)
	}
	return nil
}

// AttachEgress attaches the proxy's namespace to the egress network on the host,
// after writing its packet filter. (The internal segment need not wait for that,
// which takes the kernel some 10 ms: nothing runs at either end of it before
// VerifyProxy has verified the filter.)
//
// The proxy can reach public addresses, and port 53 of the resolvers at any address.
// Resolvers that are not IPv4 are ignored, as the network has no IPv6.
func (p *Pair) AttachEgress(ctx context.Context, resolvers []netip.Addr) error {
	bottle, err := p.m.acquireBottle(ctx, p.dir)
	if err != nil {
		return err
	}
	defer bottle.release()
	// A removal may have come first: it must not be undone by what follows.
	if !pinned(ProxyPath(p.dir)) {
		return fmt.Errorf("attach to network %s: no network namespace at %s", p.confs.Egress.Name, ProxyPath(p.dir))
	}
	host, err := hostAddresses(p.confs.Egress.Bridge)
	if err != nil {
		return err
	}
	own, err := ownAddresses()
	if err != nil {
		return err
	}
	pol, err := readPolicy(p.dir) // written by SetDestinations if it was called
	if err != nil {
		return err
	}
	pol.Resolvers, pol.Host, pol.Never = ipv4Only(resolvers), host, slices.Concat(own, []netip.Prefix{p.confs.Egress.Subnet})
	if err := writePolicy(p.dir, pol); err != nil {
		return err
	}
	err = Do(ProxyPath(p.dir), func() error {
		return writeProxyTable(p.confs.Internal.Bridge, pol)
	})
	if err != nil {
		return err
	}
	n, err := p.m.network(p.confs.Egress, p.dir, p.id, ProxyPath(p.dir))
	if err != nil {
		return err
	}
	l, err := p.m.acquire(ctx)
	if err != nil {
		return err
	}
	defer l.release()
	return p.m.attachEgress(ctx, n, l)
}

// attachEgress is the part of AttachEgress that requires the lock.
func (m *Manager) attachEgress(ctx context.Context, n *network, l *lock) error {
	if err := m.saveForwarding(); err != nil {
		return err
	}
	if err := ensureBridge(n.conf.Bridge); err != nil {
		return err
	}
	if forward, err := readSysctl("ipv4/ip_forward"); err != nil {
		return fmt.Errorf("read the host's ip_forward: %w", err)
	} else if forward == "0" {
		// The plugin turns it on: the rules that limit it must come first.
		if err := m.writeHost(n.conf); err != nil {
			return err
		}
	}
	stop := l.Share()
	res, err := n.add(ctx)
	stop()
	if err != nil {
		return err
	}
	for _, i := range res.Interfaces {
		if i.Sandbox == "" && i.Name != n.conf.Bridge {
			if err := isolate(i.Name, n.rt.ContainerID); err != nil {
				return err
			}
		}
	}
	return m.writeHost(n.conf)
}

// isolate labels a port of the bridge with the id of its bottle and isolates it from
// the other ports, because bridged packets do not pass the packet filter. Plugins
// before 1.5 do not support "portIsolation".
func isolate(name, id string) error {
	port, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := netlink.LinkSetAlias(port, id); err != nil {
		return fmt.Errorf("label bridge port %s: %w", name, err)
	}
	if err := netlink.LinkSetIsolated(port, true); err != nil {
		return fmt.Errorf("isolate bridge port %s: %w", name, err)
	}
	return disableIPv6(name)
}

func ipv4Only(addrs []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		if a = a.Unmap(); a.Is4() && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

func policyFile(dir string) string { return filepath.Join(cniDir(dir), "policy.json") }

// writePolicy also marks the bottle as possibly attached to the egress network: the
// file exists before the first change on the host.
func writePolicy(dir string, p policy) error {
	data, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("write the egress policy: %w", err)
	}
	// Not MkdirAll, which would recreate the directory of a bottle that was removed.
	if err := os.Mkdir(cniDir(dir), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("write the egress policy: %w", err)
	}
	return atomicfile.Write(policyFile(dir), data, 0o600)
}

// readPolicy returns an empty policy if the bottle has none.
func readPolicy(dir string) (p policy, err error) {
	data, err := os.ReadFile(policyFile(dir))
	if errors.Is(err, os.ErrNotExist) {
		return p, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &p)
	}
	if err != nil {
		return policy{}, fmt.Errorf("read the egress policy %s: %w", policyFile(dir), err)
	}
	return p, nil
}

// Reopen returns the complete network of a bottle whose sandbox has ended, for another
// sandbox: gVisor has taken the addresses out of the agent's namespace, and they are assigned
// again. Everything is verified as at a launch.
func (m *Manager) Reopen(ctx context.Context, dir string) (*Pair, error) {
	p, err := m.pair(dir)
	if err != nil {
		return nil, err
	}
	bottle, err := m.acquireBottle(ctx, p.dir)
	if err != nil {
		return nil, err
	}
	defer bottle.release()
	if !pinned(AgentPath(p.dir)) {
		return nil, fmt.Errorf("no network namespace at %s", AgentPath(p.dir))
	}
	err = Do(AgentPath(p.dir), func() error {
		err := setAddress(nicName, segment.Agent)
		if errors.Is(err, unix.EEXIST) { // the sandbox had not been created
			err = nil
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return p, p.Verify(ctx)
}
