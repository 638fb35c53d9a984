package netns

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// A packet must be accepted by every chain on the hook that it passes: what
// bottle's own table accepts, a chain of the host's that drops by default still
// drops. So such a chain gets two rules at its end, behind the host's own, which
// keep their word; they overrule its policy and nothing else, and go with the
// last bottle. Bottle's table decides about the same packets besides.

// ruleMark is the comment on rules that are bottle's in a chain that is not.
const ruleMark = "bottle"

// dropping lists the host's chains that drop forwarded IPv4 packets by default.
func dropping(conn *nftables.Conn) ([]*nftables.Chain, error) {
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

// openForward puts bottle's rules into every chain that needs them and lacks
// them.
func openForward(bridge string) error {
	return changeForward(dropping, func(conn *nftables.Conn, c *nftables.Chain, marked []*nftables.Rule) {
		if len(marked) == len(forwardRules(bridge)) {
			return
		}
		for _, r := range marked {
			_ = conn.DelRule(r) // it has a handle: it was listed
		}
		for _, exprs := range forwardRules(bridge) {
			conn.AddRule(&nftables.Rule{
				Table: c.Table, Chain: c, Exprs: exprs,
				UserData: userdata.AppendString(nil, userdata.TypeComment, ruleMark),
			})
		}
	})
}

// closeForward takes them out again, whatever the chain's policy is by now.
func closeForward() error {
	return changeForward(forwardChains, func(conn *nftables.Conn, _ *nftables.Chain, marked []*nftables.Rule) {
		for _, r := range marked {
			_ = conn.DelRule(r) // it has a handle: it was listed
		}
	})
}

// forwardRules have no more in them than iptables can show. What may come in by
// the second is for bottle's own chain to say.
func forwardRules(bridge string) [][]expr.Any {
	return [][]expr.Any{slices.Concat(from(bridge), accept()), slices.Concat(to(bridge), accept())}
}

func changeForward(list func(*nftables.Conn) ([]*nftables.Chain, error), change func(*nftables.Conn, *nftables.Chain, []*nftables.Rule)) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	chains, err := list(conn)
	if err != nil {
		return err
	}
	for _, c := range chains {
		marked, err := markedRules(conn, c)
		if err != nil {
			return err
		}
		change(conn, c, marked)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("change what the host's forward chains accept: %w", err)
	}
	return nil
}

func markedRules(conn *nftables.Conn, c *nftables.Chain) ([]*nftables.Rule, error) {
	rules, err := conn.GetRules(c.Table, c)
	if err != nil {
		return nil, fmt.Errorf("read nftables chain %s: %w", chainName(c), err)
	}
	return slices.DeleteFunc(rules, func(r *nftables.Rule) bool {
		text, ok := userdata.GetString(r.UserData, userdata.TypeComment)
		return !ok || text != ruleMark
	}), nil
}

// forwardDiffers names the chains that would drop what a bottle sends.
func forwardDiffers(bridge string) ([]string, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	chains, err := dropping(conn)
	if err != nil {
		return nil, err
	}
	var diff []string
	for _, c := range chains {
		marked, err := markedRules(conn, c)
		if err != nil {
			return nil, err
		}
		if len(marked) != len(forwardRules(bridge)) {
			diff = append(diff, fmt.Sprintf("the host's chain %s drops forwarded packets and accepts none of %s", chainName(c), bridge))
		}
	}
	return diff, nil
}

// markedChains names the host's chains that hold rules of bottle's.
func markedChains() ([]string, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	chains, err := forwardChains(conn)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, c := range chains {
		marked, err := markedRules(conn, c)
		if err != nil {
			return nil, err
		}
		if len(marked) > 0 {
			out = append(out, chainName(c))
		}
	}
	return out, nil
}

func chainName(c *nftables.Chain) string {
	family := "inet"
	if c.Table.Family == nftables.TableFamilyIPv4 {
		family = "ip"
	}
	return family + " " + c.Table.Name + " " + c.Name
}

// lookForward tells what a launch changes in the host's forward chains, and
// warns of what it cannot change: chains that end by refusing everything, and
// rules that nftables does not show.
func lookForward(bridge string) (changes, warnings []string, err error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, nil, fmt.Errorf("open nftables: %w", err)
	}
	chains, err := forwardChains(conn)
	if err != nil {
		return nil, nil, err
	}
	for _, c := range chains {
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return nil, nil, fmt.Errorf("read nftables chain %s: %w", chainName(c), err)
		}
		last := len(rules) - 1
		switch {
		case last >= 0 && refusesAll(rules[last]):
			warnings = append(warnings, fmt.Sprintf("the host's nftables chain %q ends by refusing all that is forwarded: egress works only if a rule before that accepts what comes from and goes to %s (firewalld: firewall-cmd --zone=trusted --add-interface=%[2]s)", chainName(c), bridge))
		case c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop:
			changes = append(changes, fmt.Sprintf("two rules for %s at the end of nftables chain %q, which drops by default", bridge, chainName(c)))
		}
	}
	if legacyForward() {
		warnings = append(warnings, fmt.Sprintf("the host has rules of legacy iptables, which bottle neither sees nor changes: if its FORWARD policy is DROP, egress works only after iptables-legacy -A FORWARD -i %s -j ACCEPT and iptables-legacy -A FORWARD -o %[1]s -j ACCEPT", bridge))
	}
	return changes, warnings, nil
}

// refusesAll holds for a rule without a condition that drops or rejects.
func refusesAll(r *nftables.Rule) bool {
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

// legacyForward tells whether the older iptables, whose rules are the kernel's
// in another way, has its filter table loaded.
func legacyForward() bool {
	names, err := os.ReadFile("/proc/thread-self/net/ip_tables_names")
	return err == nil && slices.Contains(strings.Fields(string(names)), "filter")
}
