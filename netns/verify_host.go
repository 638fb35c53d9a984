package netns

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/bot-bottle/bottle/cni-conf"
)

// ErrFlushed is wrapped when the host's rules for running bottles are missing.
var ErrFlushed = errors.New("the host's firewall rules for running bottles are missing")

// VerifyHost checks that the host's side of the network is complete for the
// bottles that are attached; it succeeds if there are none. The error wraps
// ErrFlushed. In that state nothing more is open to an agent, because the rules in
// its proxy's namespace still apply, but allowed traffic may be dropped.
func (m *Manager) VerifyHost(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	confs, err := m.confs()
	if err != nil {
		return err
	}
	diff, err := m.diffShared(confs.Egress)
	if err != nil || len(diff) == 0 {
		return err
	}
	// A bottle may have been added or removed meanwhile: the lock gives the answer.
	l, err := m.acquireExisting(ctx)
	if l == nil {
		return err
	}
	defer l.release()
	diff, err = m.diffShared(confs.Egress)
	if err != nil || len(diff) == 0 {
		return err
	}
	return fmt.Errorf("%w: %s", ErrFlushed, strings.Join(diff, "; "))
}

// diffShared compares what bottles share on the host with what the attached ones
// need.
func (m *Manager) diffShared(conf *cniconf.List) ([]string, error) {
	leases, err := m.leases(conf.Name)
	if err != nil || len(leases) == 0 {
		return nil, err
	}
	diff, err := m.diffHostTable(conf)
	if err != nil {
		return nil, err
	}
	bridge, err := linkByName(conf.Bridge)
	if err != nil {
		return nil, err
	}
	if bridge == nil {
		diff = append(diff, "missing interface "+conf.Bridge)
	}
	return append(diff, diffSettings([]setting{{"ipv4/ip_forward", "1"}})...), nil
}

// diffHostTable reads back bottle's table in the host's namespace and bottle's
// rules in the host's own chains.
func (m *Manager) diffHostTable(conf *cniconf.List) ([]string, error) {
	h := hostRules{bridge: conf.Bridge, subnet: conf.Subnet}
	var err error
	if h.unforwarded, h.links, err = m.savedLinks(); err != nil {
		return nil, err
	}
	shape, err := tableShape()
	if err != nil {
		return nil, err
	}
	want, err := hostTable(h)
	if err != nil {
		return nil, err
	}
	forward, err := diffForward(conf.Bridge)
	return append(diffChains(shape, want.shape), forward...), err
}
