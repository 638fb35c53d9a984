package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/bot-bottle/bottle/cni-conf"
)

// Remove takes away the network of the bottle whose folder is dir, whole, half
// made or half removed, from names alone; it is no error if there is none. It
// goes on past failures and returns them all. Whoever leaves last takes away
// what bottles share, and puts the host's ip_forward back. Processes that still
// run in the namespaces keep those alive, without links.
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
	internal := make(chan error, 1)
	go func() { internal <- m.detachInternal(ctx, confs.Internal, dir, id) }()
	egress := m.leaveEgress(ctx, confs.Egress, dir, id)
	// Only now: without its namespace a plugin would not find what it made.
	return errors.Join(<-internal, egress, unpin(AgentPath(dir)), unpin(ProxyPath(dir)), removeCNIDir(dir))
}

func removeCNIDir(dir string) error {
	if err := os.RemoveAll(cniDir(dir)); err != nil {
		return fmt.Errorf("remove CNI's cache: %w", err)
	}
	return nil
}

// detachInternal has the plugin take the segment away. Without the proxy's
// namespace there is none: it existed nowhere else.
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
		return n.del(ctx)
	})
}

// leaveEgress detaches the proxy from the egress network and, if it was the
// last one there, takes that away.
func (m *Manager) leaveEgress(ctx context.Context, conf *cniconf.List, dir, id string) error {
	if _, err := os.Lstat(m.netDir()); errors.Is(err, os.ErrNotExist) {
		return nil // nobody ever took the lock: nothing is attached
	}
	l, err := m.acquire(ctx)
	if err != nil {
		return err
	}
	defer l.release()
	derr := m.detachEgress(ctx, conf, dir, id, l)
	return errors.Join(derr, m.settle(conf))
}

func (m *Manager) detachEgress(ctx context.Context, conf *cniconf.List, dir, id string, l *lock) error {
	held, err := m.leasesOf(conf.Name, id)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(policyFile(dir)); err != nil && len(held) == 0 {
		return nil // never attached, or detached already
	}
	n, err := m.network(conf, dir, id, ProxyPath(dir))
	if err != nil {
		return err
	}
	stop := l.shareWithPlugins()
	err = n.del(ctx)
	stop()
	return errors.Join(err, m.detachedEgress(conf, dir, id))
}

// detachedEgress makes sure that nothing is left where the plugins failed or
// were not there.
func (m *Manager) detachedEgress(conf *cniconf.List, dir, id string) error {
	var errs []error
	if pinned(ProxyPath(dir)) {
		errs = append(errs, Do(ProxyPath(dir), func() error { return deleteLink(nicName) }))
	}
	// The namespace may have lost its name and still have the link.
	errs = append(errs, deletePorts(conf.Bridge, func(of string) bool { return of == id }))
	held, err := m.leasesOf(conf.Name, id)
	errs = append(errs, err)
	for _, l := range held {
		errs = append(errs, l.free())
	}
	return errors.Join(errs...)
}

func (m *Manager) leasesOf(network, id string) ([]lease, error) {
	all, err := m.leases(network)
	var out []lease
	for _, l := range all {
		if l.id == id {
			out = append(out, l)
		}
	}
	return out, err
}

// settle brings the host's side in line with who is attached: the table for
// those that are, or nothing at all. What exists decides, no count is kept.
func (m *Manager) settle(conf *cniconf.List) error {
	leases, err := m.leases(conf.Name)
	if err != nil {
		return err
	}
	leases, ferr := m.freeStale(leases)
	derr := deletePorts(conf.Bridge, func(id string) bool { return !m.exists(id) })
	joined, err := ports(conf.Bridge)
	if err := errors.Join(ferr, derr, err); err != nil {
		return err
	}
	if len(leases) > 0 || len(joined) > 0 {
		return m.writeHost(conf)
	}
	// The lock's file last: until it is gone, another attempt finds the rest.
	err = errors.Join(deleteBridge(conf.Bridge), closeForward(), m.restoreForwarding(), removeTable())
	if err != nil {
		return err
	}
	return m.removeNetDir()
}

// Refresh writes the host's nftables table again for the bottles that are
// attached, as after a reload of the host's firewall. If none is, it takes away
// what bottles shared.
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
	return m.settle(confs.Egress)
}
