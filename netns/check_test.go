package netns

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestInUse: the kernel's features need not be tried where both the bridge and the table
// of running bottles exist.
func TestInUse(t *testing.T) {
	const bridge = "bottle7"
	want := func(what string, want bool) {
		if got, err := inUse(bridge); got != want || err != nil {
			t.Errorf("%s: %t, %v", what, got, err)
		}
	}
	write := func() error {
		return writeHostTable(hostRules{bridge: bridge, subnet: netip.MustParsePrefix("10.9.0.0/16")})
	}
	err := onThread(func() error {
		if err := errors.Join(unix.Unshare(unix.CLONE_NEWNET), setUpNS()); err != nil {
			return err
		}
		want("nothing", false)
		if err := write(); err != nil {
			return err
		}
		want("the table", false)
		attrs := netlink.NewLinkAttrs()
		attrs.Name = bridge
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer"}); err != nil {
			return err
		}
		want("the table and another link of the name", false)
		if err := errors.Join(deleteLink(bridge), ensureBridge(bridge)); err != nil {
			return err
		}
		want("both", true)
		conn, err := newRuleset() // replaces the table by an empty one
		if err != nil {
			return err
		}
		if err := conn.commit(); err != nil {
			return err
		}
		want("the bridge and an empty table", false)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
