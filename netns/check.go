package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/cni-conf"
	"github.com/bot-bottle/bottle/internal/proven"
)

// Info describes the network that a launch would create on this host.
type Info struct {
	Internal string // the segment between agent and proxy, CIDR
	Egress   string // the network between proxy and host, CIDR
	Bridge   string // the egress network's bridge on the host
	// Changes list what is changed in the host's configuration while bottles run.
	Changes []Finding
	// Warnings list what on the host may block egress.
	Warnings []Finding
}

// Check reports whether a bottle's network can be created on this host. It changes
// nothing: kernel features are tried in a temporary namespace. The error joins a
// *Problem for each subject that has one.
func (m *Manager) Check(ctx context.Context) (Info, error) { return m.check(ctx, false) }

// Plan is Check, but does not try the kernel's features again while this kernel, in this
// namespace, has created a bottle's network before.
func (m *Manager) Plan(ctx context.Context) (Info, error) { return m.check(ctx, true) }

func (m *Manager) check(ctx context.Context, records bool) (Info, error) {
	if err := ctx.Err(); err != nil {
		return Info{}, err
	}
	confs, err := m.confs()
	if err != nil {
		return Info{}, err
	}
	info := Info{
		Internal: confs.Internal.Subnet.String(), Egress: confs.Egress.Subnet.String(), Bridge: confs.Egress.Bridge,
	}
	forward, err := readSysctl("ipv4/ip_forward")
	if err != nil {
		return info, fmt.Errorf("read the host's ip_forward: %w", err)
	}
	if forward == "0" {
		info.Changes = append(info.Changes, Finding{Subject: SubjectForwarding, Detail: "net.ipv4.ip_forward is turned on"})
	}
	if err := errors.Join(m.checkPlugins(confs), m.checkOverlap(confs.Egress), m.checkKernel(confs, records)); err != nil {
		return info, err
	}
	changes, warnings, err := inspectForward(confs.Egress.Bridge)
	info.Changes, info.Warnings = append(info.Changes, changes...), warnings
	return info, err
}

// checkPlugins reports every missing plugin.
func (m *Manager) checkPlugins(confs *cniconf.Networks) error {
	var missing []string
	for _, name := range slices.Concat(confs.Egress.Plugins, confs.Internal.Plugins) {
		if _, ok := m.findPlugin(name); !ok && !slices.Contains(missing, name) {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return &Problem{
		Subject: SubjectPlugins,
		Err:     fmt.Errorf("%w: %s (searched %s)", ErrNoPlugin, strings.Join(missing, ", "), strings.Join(m.cfg.PluginDirs, ":")),
		Fix:     "install them (Debian: apt install containernetworking-plugins, and export CNI_PATH=/usr/lib/cni), or set CNI_PATH to their directory",
	}
}

// checkOverlap searches for other routes into the egress network's subnet. A
// prefix shorter than 8 bits is a default route, or one of the halves of a default
// route that VPNs set, and does not claim that subnet.
func (m *Manager) checkOverlap(conf *cniconf.List) error {
	list, err := retryDump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list the host's routes: %w", err)
	}
	bridge, err := linkByName(conf.Bridge)
	if err != nil {
		return err
	}
	for _, r := range list {
		if bridge != nil && r.LinkIndex == bridge.Attrs().Index {
			continue
		}
		if dst := prefixOf(r.Dst); dst.Bits() >= 8 && dst.Overlaps(conf.Subnet) {
			return &Problem{
				Subject: SubjectSubnet,
				Err:     fmt.Errorf("%w: the host has a route to %s, which overlaps the egress network %s", ErrOverlap, dst, conf.Subnet),
				Fix:     fmt.Sprintf("copy %s to %s and choose another subnet", cniconf.EgressFile, m.cfg.ConfDir),
			}
		}
	}
	return nil
}

// checkKernel creates what a launch creates, in a namespace that ends with the
// function. The kernel takes tens of milliseconds for that, which are saved while the host
// has what a running bottle has created and, with records, after a launch.
func (m *Manager) checkKernel(confs *cniconf.Networks, records bool) error {
	evidence, _ := kernelEvidence() // without it, nothing is recorded
	if records && evidence != "" && proven.Known(m.cfg.RunDir, kernelSubject, evidence) {
		return nil
	}
	if inUse, err := inUse(confs.Egress.Bridge); inUse || err != nil {
		return err
	}
	if err := tryKernel(confs); err != nil {
		return err
	}
	m.kernel.Store(&evidence)
	return nil
}

// kernelSubject is the name of the record of checkKernel.
const kernelSubject = "kernel"

// kernelEvidence describes what checkKernel depends on, as far as it can change until the
// next boot: the namespaces and the capabilities of this process. A module of the kernel
// that was unloaded is loaded again when it is needed.
func kernelEvidence() (string, error) {
	var release unix.Utsname
	if err := unix.Uname(&release); err != nil {
		return "", fmt.Errorf("identify the kernel: %w", err)
	}
	out := []string{unix.ByteSliceToString(release.Release[:]), unix.ByteSliceToString(release.Version[:])}
	for _, ns := range []string{"net", "user"} {
		var st unix.Stat_t
		if err := unix.Stat("/proc/thread-self/ns/"+ns, &st); err != nil {
			return "", fmt.Errorf("identify the kernel's namespace: %w", err)
		}
		out = append(out, fmt.Sprint(st.Dev, st.Ino))
	}
	var caps [2]unix.CapUserData
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return "", fmt.Errorf("read capabilities: %w", err)
	}
	return strings.Join(append(out, fmt.Sprint(caps)), "\x00"), nil
}

// RecordProven records that this process has tried the kernel's features. The caller has
// created a bottle's network since then. The run directory must be on tmpfs.
func (m *Manager) RecordProven() error {
	if evidence := m.kernel.Swap(nil); evidence != nil && *evidence != "" {
		return proven.Write(m.cfg.RunDir, kernelSubject, *evidence)
	}
	return nil
}

func tryKernel(confs *cniconf.Networks) error {
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("create network namespace: %w", err)
		}
		if err := setUpNS(); err != nil {
			return err
		}
		if err := ensureBridge(confs.Egress.Bridge); err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = nicName
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "veth1"}); err != nil {
			return fmt.Errorf("create veth pair: %w", err)
		}
		pair := addrPair{netip.IPv4Unspecified(), netip.IPv4Unspecified()}
		return errors.Join(
			writeHostTable(hostRules{
				bridge: confs.Egress.Bridge, subnet: confs.Egress.Subnet, resolvers: []addrPair{pair}, allow: []allowance{{pair.from, []netip.Prefix{netip.PrefixFrom(pair.to, 8)}}},
				unforwarded: []string{"lo"}, links: []string{"lo"},
			}),
			writeProxyTable(confs.Internal.Bridge, policy{Ports: Ports(80), Allow: []netip.Prefix{netip.PrefixFrom(pair.to, 8)}}),
		)
	})
	if err != nil {
		return &Problem{
			Subject: SubjectKernel, Err: fmt.Errorf("%w: %w", ErrKernel, err),
			Fix: "modprobe -a bridge veth nf_tables nft_masq nft_ct",
		}
	}
	return nil
}

// inUse reports whether the host has the bridge and the table of running bottles.
func inUse(name string) (bool, error) {
	l, err := linkByName(name)
	if err != nil {
		return false, err
	}
	if bridge, ok := l.(*netlink.Bridge); !ok || bridge == nil {
		return false, nil
	}
	shape, err := tableShape()
	// Where the kernel lacks nftables, the error of the complete check says so.
	return err == nil && len(shape) > 0, nil
}
