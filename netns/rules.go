package netns

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/bot-bottle/bottle/internal/segment"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const dnsPort = 53

// policy is what one bottle may reach in addition to public addresses. It is stored in the
// bottle's directory, so that the host's table can be written again, for example
// after the host's firewall was reloaded.
type policy struct {
	Resolvers []netip.Addr `json:"resolvers"` // port 53 only
	// Allow are special-purpose networks that the policy names.
	Allow []netip.Prefix `json:"allow"`
	// Ports are the allowed TCP ports; empty: all.
	Ports []PortRange `json:"ports,omitempty"`
	// Front: a process of its own is in front of the proxy.
	Front bool `json:"front,omitempty"`
	// Host are the host's own addresses and subnets. They are also blocked in the
	// proxy's namespace, which a reload of the host's firewall does not affect.
	Host []netip.Prefix `json:"host"`
	// Never are the host's own addresses and the egress network. Allow does not
	// open them, unlike the other entries of Host.
	Never []netip.Prefix `json:"never,omitempty"`
}

// hostRules are the inputs of the table in the host's namespace.
type hostRules struct {
	bridge    string
	subnet    netip.Prefix
	resolvers []addrPair // a bottle's egress address and a resolver's
	allow     []allowance
	local     []netip.Prefix // the host's own subnets
	// unforwarded are the links that the host did not forward from before bottle
	// turned ip_forward on; links are all that it had then.
	unforwarded, links []string
}

// writeHostTable replaces bottle's table in the thread's namespace, the host's. An
// accept verdict is final for this table only: the packet passes the host's own
// chains as well.
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
	blocked := r.ranges("special", merged(slices.Concat(special, h.local)))

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
		// A set for each bottle: the kernel acknowledges every rule, and a socket
		// queues a few hundred acknowledgements.
		to := r.ranges("allow-"+a.from.String(), merged(a.to))
		r.rule(forward, from(h.bridge), source(a.from), destIn(to), accept())
	}
	r.rule(forward, from(h.bridge), destIn(blocked), drop())
	r.rule(forward, to(h.bridge), replies(), accept())
	r.rule(forward, to(h.bridge), drop())
	// A host that was not a router does not become one because of bottle: its links
	// stay separated. What a link that is added later sends is not restricted, as its
	// owner may want it forwarded (docker, libvirt). In the other direction only
	// replies pass, and what the host redirects there, such as to docker's published
	// ports: a neighbour does not reach a VPN that is started while bottles run.
	if len(h.unforwarded) > 0 {
		unforwarded := r.names("unforwarded", h.unforwarded)
		// With br_netfilter loaded, this chain also sees packets that a bridge
		// passes between its ports, with that bridge as both input and output.
		r.rule(forward, sameLinkIn(r.sameLinks("bridged", h.unforwarded)), accept())
		r.rule(forward, fromIn(unforwarded), toIn(r.names("links", h.links)), drop())
		r.rule(forward, fromIn(unforwarded), replies(), accept())
		r.rule(forward, fromIn(unforwarded), redirected(), accept())
		r.rule(forward, fromIn(unforwarded), drop())
	}

	post := r.conn.AddChain(&nftables.Chain{
		Name: "postrouting", Table: r.table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	r.rule(post, ipv4(), sourceIn(h.subnet), notTo(h.bridge), masquerade())
	return r, nil
}

// writeProxyTable replaces bottle's table in the thread's namespace, a proxy's. It
// does not depend on the host's firewall. The agent can connect to the proxy's port
// only. The proxy cannot connect to the agent, to itself, nor to special-purpose
// addresses that its policy does not name.
func writeProxyTable(bridge string, p policy) error { return commit(proxyTable(bridge, p)) }

func proxyTable(bridge string, p policy) (*ruleset, error) {
	r, err := newRuleset()
	if err != nil {
		return nil, err
	}
	proxy, agent := segment.Proxy.Addr(), segment.Agent.Addr()
	input := r.chain("input", nftables.ChainHookInput, true)
	r.rule(input, from("lo"), accept())
	r.rule(input, from(bridge), ipv4(), source(agent), dest(proxy), port(unix.IPPROTO_TCP, offsetDport, segment.ProxyPort), accept())
	r.rule(input, from(nicName), ipv4(), replies(), accept())

	r.chain("forward", nftables.ChainHookForward, true)

	output := r.chain("output", nftables.ChainHookOutput, true)
	// The proxy is not root and must not reach itself: not its own services, for
	// example pipelock's statistics on 127.0.0.1, and not itself by another of its
	// addresses. Bottle is root, and checks the proxy's health over loopback.
	r.rule(output, to("lo"), replies(), accept())
	r.rule(output, to("lo"), ownedBy(0), accept())
	if p.Front {
		behind := segment.BehindAddrPort()
		r.rule(output, to("lo"), ownedBy(segment.FrontUID), ipv4(), dest(behind.Addr()), port(unix.IPPROTO_TCP, offsetDport, behind.Port()), accept())
	}
	r.rule(output, to(bridge), ipv4(), source(proxy), dest(agent), port(unix.IPPROTO_TCP, offsetSport, segment.ProxyPort), accept())
	r.rule(output, notTo(nicName), drop())
	r.rule(output, notIPv4(), drop())
	if p.Front {
		r.rule(output, ownedBy(segment.FrontUID), drop())
	}
	for _, a := range p.Resolvers {
		for _, d := range dns() {
			r.rule(output, dest(a), d, accept())
		}
	}
	if len(p.Ports) > 0 {
		r.rule(output, r.portNotIn(p.Ports), drop())
	}
	if len(p.Never) > 0 {
		r.rule(output, destIn(r.ranges("never", merged(p.Never))), drop())
	}
	if len(p.Allow) > 0 {
		r.rule(output, destIn(r.ranges("allow", merged(p.Allow))), protocol(unix.IPPROTO_TCP), accept())
	}
	r.rule(output, destIn(r.ranges("special", merged(slices.Concat(special, p.Host)))), drop())
	r.rule(output, protocol(unix.IPPROTO_TCP), accept())
	return r, nil
}

func dns() [][]expr.Any {
	return [][]expr.Any{port(unix.IPPROTO_UDP, offsetDport, dnsPort), port(unix.IPPROTO_TCP, offsetDport, dnsPort)}
}

// removeTable removes bottle's table from the thread's namespace.
func removeTable() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
	conn.AddTable(t) // deleting a table that does not exist would fail
	conn.DelTable(t)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("remove nftables table inet %s: %w", tableName, err)
	}
	return nil
}
