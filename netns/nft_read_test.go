package netns

import (
	"errors"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// TestReadRulesetRepeats checks that a listing is repeated if the ruleset changed
// during it.
func TestReadRulesetRepeats(t *testing.T) {
	defer removeFirewall(t)
	calls := 0
	err := readRuleset(func(*nftables.Conn) error {
		if calls++; calls < 3 {
			return reloadFirewall(calls)
		}
		return nil
	})
	if err != nil || calls != 3 {
		t.Errorf("%d calls, error %v, want 3 calls", calls, err)
	}
}

// TestChangeForwardRepeats checks that it is not an error if a reload deletes a rule
// before bottle does.
func TestChangeForwardRepeats(t *testing.T) {
	defer removeFirewall(t)
	if err := errors.Join(reloadFirewall(0), addForwardRules("bottle0")); err != nil {
		t.Fatal(err)
	}
	calls := 0
	deleteOwn := func(conn *nftables.Conn, _ *nftables.Chain, own []*nftables.Rule) {
		for _, r := range own {
			if err := conn.DelRule(r); err != nil {
				t.Error(err)
			}
		}
		if calls++; calls == 1 {
			if err := reloadFirewall(0); err != nil {
				t.Error(err)
			}
		}
	}
	if err := changeForward(forwardChains, deleteOwn); err != nil || calls != 2 {
		t.Errorf("%d calls, error %v, want 2 calls", calls, err)
	}
	// Control: the kernel refuses to delete a rule that was deleted.
	if err := addForwardRules("bottle0"); err != nil {
		t.Fatal(err)
	}
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	err = eachChain(forwardChains, func(c *nftables.Chain, rules []*nftables.Rule) {
		for _, r := range ownRules(rules) {
			if err := conn.DelRule(r); err != nil {
				t.Error(err)
			}
		}
	})
	if err := errors.Join(err, removeForwardRules()); err != nil {
		t.Fatal(err)
	}
	if err := conn.Flush(); !errors.Is(err, unix.ENOENT) {
		t.Errorf("deleting a deleted rule: %v", err)
	}
}
