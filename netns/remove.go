package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/bot-bottle/bottle/cni-conf"
)

// Remove removes the network of the bottle whose directory is dir, complete or
// not, from names alone. It succeeds if there is none, also if another process
// removes it concurrently. It continues after failures and returns them all. The last
// bottle's removal also removes what bottles share and restores the host's
// ip_forward. Processes that still run in the namespaces keep those alive, without
// links.
func (m *Manager) Remove(ctx context.Context, dir string) error {
	dir = filepath.Clean(dir)
	id, err := m.containerID(dir)
	if err != nil {
		return err
	}
	confs, err := m.confs()
	if err != nil {
		return err
	}
	// Concurrent removals take turns: a plugin must not find a namespace that another
	// process unpins at that moment.
	bottle, err := m.acquireBottle(ctx, dir)
	if err != nil {
		return err
	}
	defer bottle.release()
	internal := make(chan error, 1)
	go func() { internal <- m.detachInternal(ctx, confs.Internal, dir, id) }()
	egress := m.detachEgress(ctx, confs.Egress, dir, id)
	// Namespaces last: plugins need them to find what they created.
	return errors.Join(<-internal, egress, unpin(AgentPath(dir)), unpin(ProxyPath(dir)), removeCNIDir(dir))
}

func removeCNIDir(dir string) error {
	if err := os.RemoveAll(cniDir(dir)); err != nil {
		return fmt.Errorf("remove CNI's cache: %w", err)
	}
	return nil
}

// detachInternal removes the internal segment. Without the proxy's namespace there is none, because
// it exists only there. What simple plugins create is removed by a call of the kernel, which takes a
// fraction of the time of two processes.
func (m *Manager) detachInternal(ctx context.Context, conf *cniconf.List, dir, id string) error {
	if !pinned(ProxyPath(dir)) {
		return nil
	}
	n, err := m.network(conf, dir, id, AgentPath(dir))
	if err != nil {
		return err
	}
	return Do(ProxyPath(dir), func() error {
		l, err := linkByName(conf.Bridge)
		if l == nil {
			return err
		}
		if conf.Simple {
			ports, err := portsOf(l)
			errs := []error{err}
			for _, port := range ports {
				errs = append(errs, deleteLink(port.Attrs().Name))
			}
			return errors.Join(errs...)
		}
		return n.del(ctx)
	})
}

// detachEgress detaches the proxy from the egress network and removes that network
// if no other bottle uses it.
func (m *Manager) detachEgress(ctx context.Context, conf *cniconf.List, dir, id string) error {
	l, err := m.acquireExisting(ctx)
	if l == nil {
		return err // no network directory: nothing is attached
	}
	defer l.release()
	derr := m.detachEgressLocked(ctx, conf, dir, id, l)
	return errors.Join(derr, m.reconcile(conf))
}

func (m *Manager) detachEgressLocked(ctx context.Context, conf *cniconf.List, dir, id string, l *lock) error {
	leases, err := m.leasesOf(conf.Name, id)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(policyFile(dir)); err != nil && len(leases) == 0 {
		return nil // never attached, or already detached
	}
	if conf.Simple {
		return m.removeEgress(conf, dir, id)
	}
	n, err := m.network(conf, dir, id, ProxyPath(dir))
	if err != nil {
		return err
	}
	stop := l.Share()
	err = n.del(ctx)
	stop()
	return errors.Join(err, m.removeEgress(conf, dir, id))
}

// removeEgress removes what simple plugins create, or what others left because they failed or were
// missing.
func (m *Manager) removeEgress(conf *cniconf.List, dir, id string) error {
	var errs []error
	if pinned(ProxyPath(dir)) {
		errs = append(errs, Do(ProxyPath(dir), func() error { return deleteLink(nicName) }))
	}
	// The namespace may be unpinned and still contain the link.
	errs = append(errs, deletePorts(conf.Bridge, func(of string) bool { return of == id }))
	leases, err := m.leasesOf(conf.Name, id)
	errs = append(errs, err)
	for _, l := range leases {
		errs = append(errs, l.free())
	}
	return errors.Join(errs...)
}

// reconcile makes the host's side match the bottles that are attached: it writes
// the table for them, or removes everything if there are none. It decides by what
// exists; there is no reference count.
func (m *Manager) reconcile(conf *cniconf.List) error {
	leases, err := m.leases(conf.Name)
	if err != nil {
		return err
	}
	leases, ferr := m.freeStale(leases)
	derr := errors.Join(deleteUnnamedPorts(conf.Bridge), deletePorts(conf.Bridge, func(id string) bool { return !m.exists(id) }))
	ports, err := bridgePorts(conf.Bridge)
	if err := errors.Join(ferr, derr, err); err != nil {
		return err
	}
	if len(leases) > 0 || len(ports) > 0 {
		return errors.Join(m.writeHost(conf), enableForwarding())
	}
	// The lock file last: while it exists, another attempt finds the rest.
	err = errors.Join(deleteBridge(conf.Bridge), removeForwardRules(), m.restoreForwarding(), removeTable())
	if err != nil {
		return err
	}
	return m.removeNetDir()
}

// Refresh restores the host's nftables rules and ip_forward for the bottles that are
// attached, for example after the host's firewall was reloaded. If none is attached,
// it removes what bottles shared.
func (m *Manager) Refresh(ctx context.Context) error {
	confs, err := m.confs()
	if err != nil {
		return err
	}
	shared, err := m.shared(confs.Egress)
	if err != nil || len(shared) == 0 {
		return err
	}
	l, err := m.acquire(ctx)
	if err != nil {
		return err
	}
	defer l.release()
	return m.reconcile(confs.Egress)
}
