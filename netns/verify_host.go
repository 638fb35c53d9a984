package netns

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/bot-bottle/bottle/cni-conf"
)

// ErrFlushed is wrapped when bottles run and the host's rules for them are gone.
var ErrFlushed = errors.New("the host's firewall rules for the bottles that run are gone")

// HostStands tells whether the host's side is as it must be for the bottles
// that are attached; it is if there are none. Without it nothing more is open to
// an agent, as the rules in its proxy's namespace are others, but nothing that
// is allowed may come through either.
func (m *Manager) HostStands(ctx context.Context) error {
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
	diff, err := m.hostTableDiffers(confs.Egress)
	if err != nil {
		return err
	}
	if _, err := netlink.LinkByName(confs.Egress.Bridge); err != nil {
		diff = append(diff, fmt.Sprintf("%s: %v", confs.Egress.Bridge, err))
	}
	diff = append(diff, differences([]setting{{"ipv4/ip_forward", "1"}})...)
	if len(diff) > 0 {
		return fmt.Errorf("%w: %s", ErrFlushed, strings.Join(diff, "; "))
	}
	return nil
}

// hostTableDiffers reads bottle's table in the host's namespace back, and what
// the host's own chains accept.
func (m *Manager) hostTableDiffers(conf *cniconf.List) ([]string, error) {
	h := hostRules{bridge: conf.Bridge, subnet: conf.Subnet}
	var err error
	if h.closed, h.links, err = m.formerLinks(); err != nil {
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
	barred, err := forwardDiffers(conf.Bridge)
	return append(compareChains(shape, want.shape), barred...), err
}
