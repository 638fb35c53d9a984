package netns

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"

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
	leases, err := m.leases(confs.Egress.Name)
	if err != nil || len(leases) == 0 {
		return err
	}
	diff, err := m.diffHostTable(confs.Egress)
	if err != nil {
		return err
	}
	if _, err := netlink.LinkByName(confs.Egress.Bridge); err != nil {
		diff = append(diff, fmt.Sprintf("%s: %v", confs.Egress.Bridge, err))
	}
	diff = append(diff, diffSettings([]setting{{"ipv4/ip_forward", "1"}})...)
	if len(diff) > 0 {
		return fmt.Errorf("%w: %s", ErrFlushed, strings.Join(diff, "; "))
	}
	return nil
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
