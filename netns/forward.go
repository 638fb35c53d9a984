package netns

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// A packet must be accepted by every base chain on the hook that it passes: a
// chain of the host that drops by default drops what bottle's own table accepts.
// Such a chain therefore gets two rules at its end. They come after the host's own
// rules, which still apply, override only the chain's policy, and are removed with
// the last bottle. Bottle's table filters the same packets as well.

// ruleMark is the comment on bottle's rules in the host's chains.
const ruleMark = "bottle"

// dropChains lists the host's chains that drop forwarded IPv4 packets by default.
func dropChains(conn *nftables.Conn) ([]*nftables.Chain, error) {
	chains, err := forwardChains(conn)
	return slices.DeleteFunc(chains, func(c *nftables.Chain) bool {
		return c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop
	}), err
}

// forwardChains lists the host's base chains that see forwarded IPv4 packets.
func forwardChains(conn *nftables.Conn) ([]*nftables.Chain, error) {
	chains, err := conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	return slices.DeleteFunc(chains, func(c *nftables.Chain) bool {
		ip := c.Table.Family == nftables.TableFamilyINet || c.Table.Family == nftables.TableFamilyIPv4
		return !ip || c.Table.Name == tableName || c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward
	}), nil
}

// addForwardRules adds bottle's rules to every chain that drops by default and
// does not have them.
func addForwardRules(bridge string) error {
	return changeForward(dropChains, func(conn *nftables.Conn, c *nftables.Chain, marked []*nftables.Rule) {
		if len(marked) == len(forwardRules(bridge)) {
			return
		}
		for _, r := range marked {
			_ = conn.DelRule(r) // cannot fail: a listed rule has a handle
		}
		for _, exprs := range forwardRules(bridge) {
			conn.AddRule(&nftables.Rule{
				Table: c.Table, Chain: c, Exprs: exprs,
				UserData: userdata.AppendString(nil, userdata.TypeComment, ruleMark),
			})
		}
	})
}

// removeForwardRules removes bottle's rules from all chains, whatever their policy
// is by now.
func removeForwardRules() error {
	return changeForward(forwardChains, func(conn *nftables.Conn, _ *nftables.Chain, marked []*nftables.Rule) {
		for _, r := range marked {
			_ = conn.DelRule(r) // cannot fail: a listed rule has a handle
		}
	})
}

// forwardRules use only expressions that iptables can display. Bottle's own chain
// decides which packets may come in by the second.
func forwardRules(bridge string) [][]expr.Any {
	return [][]expr.Any{slices.Concat(from(bridge), accept()), slices.Concat(to(bridge), accept())}
}

// changeForward retries if a rule or a chain that it listed was deleted meanwhile, for
// example because the host's firewall is being reloaded.
func changeForward(list func(*nftables.Conn) ([]*nftables.Chain, error), change func(*nftables.Conn, *nftables.Chain, []*nftables.Rule)) error {
	var err error
	for range nftAttempts {
		conn, cerr := nftables.New()
		if cerr != nil {
			return fmt.Errorf("open nftables: %w", cerr)
		}
		if err := eachChain(list, func(c *nftables.Chain, rules []*nftables.Rule) { change(conn, c, ownRules(rules)) }); err != nil {
			return err
		}
		if err = conn.Flush(); !errors.Is(err, unix.ENOENT) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("change the host's forward chains: %w", err)
	}
	return nil
}

// ownRules returns the rules that bottle added.
func ownRules(rules []*nftables.Rule) []*nftables.Rule {
	return slices.DeleteFunc(slices.Clone(rules), func(r *nftables.Rule) bool {
		text, ok := userdata.GetString(r.UserData, userdata.TypeComment)
		return !ok || text != ruleMark
	})
}

// diffForward reports the chains that would drop a bottle's packets.
func diffForward(bridge string) (diff []string, err error) {
	err = eachChain(dropChains, func(c *nftables.Chain, rules []*nftables.Rule) {
		if len(ownRules(rules)) != len(forwardRules(bridge)) {
			diff = append(diff, fmt.Sprintf("the host's chain %s drops forwarded packets and has no rules for %s", chainName(c), bridge))
		}
	})
	return diff, err
}

// markedChains lists the host's chains that contain bottle's rules.
func markedChains() (names []string, err error) {
	err = eachChain(forwardChains, func(c *nftables.Chain, rules []*nftables.Rule) {
		if len(ownRules(rules)) > 0 {
			names = append(names, chainName(c))
		}
	})
	return names, err
}

// eachChain calls visit for each listed chain and its rules.
func eachChain(list func(*nftables.Conn) ([]*nftables.Chain, error), visit func(*nftables.Chain, []*nftables.Rule)) error {
	var chains []*nftables.Chain
	var rules [][]*nftables.Rule
	err := readRuleset(func(conn *nftables.Conn) (err error) {
		rules = nil
		if chains, err = list(conn); err != nil {
			return err
		}
		for _, c := range chains {
			rs, err := conn.GetRules(c.Table, c)
			if err != nil {
				return fmt.Errorf("read nftables chain %s: %w", chainName(c), err)
			}
			rules = append(rules, rs)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i, c := range chains {
		visit(c, rules[i])
	}
	return nil
}

func chainName(c *nftables.Chain) string {
	family := "inet"
	if c.Table.Family == nftables.TableFamilyIPv4 {
		family = "ip"
	}
	return family + " " + c.Table.Name + " " + c.Name
}

// inspectForward returns what a launch changes in the host's forward chains, and
// warnings about what it cannot change: chains that end by rejecting everything,
// and rules that nftables does not show.
func inspectForward(bridge string) (changes, warnings []Finding, err error) {
	err = eachChain(forwardChains, func(c *nftables.Chain, rules []*nftables.Rule) {
		last := len(rules) - 1
		switch {
		case last >= 0 && rejectsAll(rules[last]):
			warnings = append(warnings, Finding{
				SubjectFirewall,
				fmt.Sprintf("the host's nftables chain %q ends by rejecting all forwarded packets, which blocks egress", chainName(c)),
				fmt.Sprintf("accept packets from and to %s in an earlier rule (firewalld: firewall-cmd --zone=trusted --add-interface=%[1]s)", bridge),
			})
		case c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop:
			changes = append(changes, Finding{
				Subject: SubjectFirewall,
				Detail:  fmt.Sprintf("two rules for %s are added to the end of nftables chain %q, which drops by default", bridge, chainName(c)),
			})
		}
	})
	if err != nil {
		return nil, nil, err
	}
	if legacyIPTables() {
		warnings = append(warnings, Finding{
			SubjectFirewall,
			"the host uses legacy iptables, whose rules bottle cannot read or change, and which block egress if the policy of FORWARD is DROP",
			fmt.Sprintf("iptables-legacy -A FORWARD -i %s -j ACCEPT; iptables-legacy -A FORWARD -o %[1]s -j ACCEPT", bridge),
		})
	}
	return changes, warnings, nil
}

// rejectsAll reports whether a rule drops or rejects unconditionally.
func rejectsAll(r *nftables.Rule) bool {
	for _, e := range r.Exprs {
		switch v := e.(type) {
		case *expr.Counter, *expr.Log, *expr.Reject:
		case *expr.Verdict:
			return v.Kind == expr.VerdictDrop
		default:
			return false
		}
	}
	return slices.ContainsFunc(r.Exprs, func(e expr.Any) bool { _, ok := e.(*expr.Reject); return ok })
}

// legacyIPTables reports whether the filter table of legacy iptables, which
// nftables does not show, is loaded.
func legacyIPTables() bool {
	names, err := os.ReadFile("/proc/thread-self/net/ip_tables_names")
	return err == nil && slices.Contains(strings.Fields(string(names)), "filter")
}
