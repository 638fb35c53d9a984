package netns

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/proven"
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

// TestKernelProven: what a launch has proved of the kernel is not tried again, but is by
// doctor, and in another namespace.
func TestKernelProven(t *testing.T) {
	t.Cleanup(func() {
		if err := proven.Forget(runDir); err != nil {
			t.Error(err)
		}
	})
	confs, err := newManager(t).confs()
	if err != nil {
		t.Fatal(err)
	}
	tried := func(what string, records, want bool) *Manager {
		m := newManager(t)
		if err := m.checkKernel(confs, records); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if got := m.kernel.Load() != nil; got != want {
			t.Errorf("%s: tried: %v", what, got)
		}
		return m
	}
	inNew := func(fn func() error) error {
		return onThread(func() error { return errors.Join(unix.Unshare(unix.CLONE_NEWNET), setUpNS(), fn()) })
	}
	err = inNew(func() error {
		m := tried("without a record", true, true)
		tried("before a launch", true, true)
		if err := m.RecordProven(); err != nil {
			return err
		}
		tried("recorded", true, false)
		tried("doctor", false, true)
		return inNew(func() error {
			tried("in another namespace", true, true)
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
}
