package netns

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/cni-conf"
)

const dnsPort = 53

// policy is what one bottle may reach beside public addresses. It is kept in
// the bottle's folder, so that the host's table can be written again from what
// is there, after a reload of the host's firewall for example.
type policy struct {
	Resolvers []netip.Addr `json:"resolvers"` // port 53 only
	// Allow are special networks that the policy names.
	Allow []netip.Prefix `json:"allow"`
	// Ports are the TCP ports that may be dialled; empty: all.
	Ports []uint16 `json:"ports,omitempty"`
	// Host are the host's own addresses and subnets. They are barred in the
	// proxy's namespace too, where no reload of the host's firewall reaches.
	Host []netip.Prefix `json:"host"`
}

// hostRules is what the table in the host's namespace is made from.
type hostRules struct {
	bridge    string
	subnet    netip.Prefix
	resolvers []addrPair     // a bottle's egress address and a resolver's
	allow     []route4       // likewise, of special networks
	local     []netip.Prefix // the host's own subnets
	// closed are the links that the host forwarded nothing from before bottle
	// turned its forwarding on, and links all that it had then.
	closed, links []string
}

// writeHostTable replaces bottle's table in the thread's namespace, the
// host's. A verdict of accept ends only this table's look at a packet: the
// host's own chains see it as well, before or after.
func writeHostTable(h hostRules) error { return commit(hostTable(h)) }

func commit(r *ruleset, err error) error {
	if err != nil {
		return err
	}
	return r.commit()
}

func hostTable(h hostRules) (*ruleset, error) {
	r, err := newRuleset()
	if err != nil {
		return nil, err
	}
	resolvers := r.pairs("resolvers", h.resolvers)
	barred := r.ranges("special", merged(slices.Concat(special, h.local)))

	input := r.chain("input", nftables.ChainHookInput, false)
	for _, p := range dns() {
		r.rule(input, from(h.bridge), ipv4(), pairIn(resolvers), p, accept())
	}
	r.rule(input, from(h.bridge), drop())

	forward := r.chain("forward", nftables.ChainHookForward, false)
	r.rule(forward, from(h.bridge), to(h.bridge), drop())
	r.rule(forward, from(h.bridge), notIPv4(), drop())
	r.rule(forward, from(h.bridge), sourceNotIn(h.subnet), drop())
	for _, p := range dns() {
		r.rule(forward, from(h.bridge), pairIn(resolvers), p, accept())
	}
	for _, a := range h.allow {
		r.rule(forward, from(h.bridge), source(a.from), destPrefix(a.to), accept())
	}
	r.rule(forward, from(h.bridge), destIn(barred), drop())
	r.rule(forward, to(h.bridge), replies(), accept())
	r.rule(forward, to(h.bridge), drop())
	// A host that was no router is none because of bottle: who is on one of its
	// links does not reach another by it. Links that come later are left alone, as
	// whoever makes them may want them forwarded (docker, libvirt).
	if len(h.closed) > 0 {
		// What a bridge passes from port to port comes by here too, where
		// br_netfilter is loaded, as from that bridge and to it.
		for _, l := range h.closed {
			r.rule(forward, from(l), to(l), accept())
		}
		r.rule(forward, fromIn(r.names("closed", h.closed)), toIn(r.names("links", h.links)), drop())
	}

	post := r.conn.AddChain(&nftables.Chain{
		Name: "postrouting", Table: r.table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	r.rule(post, ipv4(), sourceIn(h.subnet), notTo(h.bridge), masquerade())
	return r, nil
}

// writeProxyTable replaces bottle's table in the thread's namespace, a
// proxy's. It holds whatever becomes of the host's firewall. The agent reaches
// the proxy's port and nothing else; the proxy opens no connection to the agent,
// and none to a special address that its policy does not name.
func writeProxyTable(bridge string, p policy) error { return commit(proxyTable(bridge, p)) }

func proxyTable(bridge string, p policy) (*ruleset, error) {
	r, err := newRuleset()
	if err != nil {
		return nil, err
	}
	proxy, agent := ProxyAddress.Addr(), cniconf.AgentAddress.Addr()
	input := r.chain("input", nftables.ChainHookInput, true)
	r.rule(input, from("lo"), accept())
	r.rule(input, from(bridge), ipv4(), source(agent), dest(proxy), port(unix.IPPROTO_TCP, offsetDport, proxyPort), accept())
	r.rule(input, from(nicName), ipv4(), replies(), accept())

	r.chain("forward", nftables.ChainHookForward, true)

	output := r.chain("output", nftables.ChainHookOutput, true)
	r.rule(output, to("lo"), accept())
	r.rule(output, to(bridge), ipv4(), source(proxy), dest(agent), port(unix.IPPROTO_TCP, offsetSport, proxyPort), accept())
	r.rule(output, notTo(nicName), drop())
	r.rule(output, notIPv4(), drop())
	for _, a := range p.Resolvers {
		for _, d := range dns() {
			r.rule(output, dest(a), d, accept())
		}
	}
	if len(p.Ports) > 0 {
		r.rule(output, r.portNotIn(p.Ports), drop())
	}
	for _, a := range p.Allow {
		r.rule(output, destPrefix(a), protocol(unix.IPPROTO_TCP), accept())
	}
	r.rule(output, destIn(r.ranges("special", merged(slices.Concat(special, p.Host)))), drop())
	r.rule(output, protocol(unix.IPPROTO_TCP), accept())
	return r, nil
}

func dns() [][]expr.Any {
	return [][]expr.Any{port(unix.IPPROTO_UDP, offsetDport, dnsPort), port(unix.IPPROTO_TCP, offsetDport, dnsPort)}
}

// removeTable takes bottle's table out of the thread's namespace.
func removeTable() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
	conn.AddTable(t) // deleting one that is not there would fail
	conn.DelTable(t)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("remove nftables table inet %s: %w", tableName, err)
	}
	return nil
}

// tableShape reads back the chains of bottle's table in the thread's namespace;
// nil if there is no table.
func tableShape() (map[string]chainShape, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	var shape map[string]chainShape
	for _, c := range chains {
		if c.Table.Name != tableName {
			continue
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return nil, fmt.Errorf("read nftables chain %s: %w", c.Name, err)
		}
		if shape == nil {
			shape = map[string]chainShape{}
		}
		shape[c.Name] = chainShape{rules: len(rules), drop: c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop}
	}
	return shape, nil
}
