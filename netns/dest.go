package netns

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Destinations are what a proxy may connect to, as far as a packet filter can
// enforce it: by address and port, not by name.
type Destinations struct {
	// Ports are the allowed TCP ports, at public and private addresses alike;
	// empty: all. Ranges may overlap.
	Ports []PortRange
	// Private are special-purpose networks that are allowed. IPv6 prefixes are
	// ignored, as the network has no IPv6. The host's own addresses and other
	// bottles stay blocked.
	Private []netip.Prefix
	// Front: a process of segment.FrontUID is in front of the proxy. It may connect to
	// segment.BehindAddrPort, and to nothing else.
	Front bool
}

// SetDestinations changes what a bottle's proxy may connect to. It applies to
// connections opened after it returns. Called before AttachEgress, it sets what
// that allows.
func (m *Manager) SetDestinations(ctx context.Context, dir string, d Destinations) error {
	dir = filepath.Clean(dir)
	ports, err := mergePorts(d.Ports)
	if err != nil {
		return fmt.Errorf("set destinations: %w", err)
	}
	confs, err := m.confs()
	if err != nil {
		return err
	}
	l, err := m.acquire(ctx)
	if err != nil {
		return err
	}
	defer l.release()
	pol, err := readPolicy(dir)
	if err != nil {
		return err
	}
	pol.Ports, pol.Allow, pol.Front = ports, ipv4Prefixes(d.Private), d.Front
	if err := writePolicy(dir, pol); err != nil {
		return err
	}
	id, err := m.containerID(dir)
	if err != nil {
		return err
	}
	leases, err := m.leasesOf(confs.Egress.Name, id)
	if err != nil || len(leases) == 0 {
		return err // not attached yet: AttachEgress writes the tables
	}
	err = Do(ProxyPath(dir), func() error { return writeProxyTable(confs.Internal.Bridge, pol) })
	if err != nil {
		return err
	}
	return m.writeHost(confs.Egress)
}

func ipv4Prefixes(prefixes []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range prefixes {
		if p.Addr().Is4() && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// portNotIn matches TCP packets to any other port. The ranges must be merged.
func (r *ruleset) portNotIn(ports []PortRange) []expr.Any {
	var elems []nftables.SetElement
	for _, p := range ports {
		elems = append(elems, nftables.SetElement{Key: binary.BigEndian.AppendUint16(nil, p.First)})
		if p.Last < math.MaxUint16 { // a range that ends there has no end element
			elems = append(elems, nftables.SetElement{Key: binary.BigEndian.AppendUint16(nil, p.Last+1), IntervalEnd: true})
		}
	}
	set := r.set(&nftables.Set{Name: "ports", KeyType: nftables.TypeInetService, Interval: true}, elems)
	not := lookup(set)
	not.Invert = true
	return append(protocol(unix.IPPROTO_TCP),
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: offsetDport, Len: 2, DestRegister: reg1}, not)
}

// allowance is a bottle's egress address and the special-purpose networks that it may
// reach.
type allowance struct {
	from netip.Addr
	to   []netip.Prefix
}
