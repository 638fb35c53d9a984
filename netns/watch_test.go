package netns

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// startWatch runs m.WatchRules until the returned function is called.
func startWatch(t *testing.T, m *Manager) (stop func()) {
	t.Helper()
	c, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.WatchRules(c) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("WatchRules: %v", err)
		}
	})
}

// reloadFirewall replaces the host's firewall as its service does on a reload: it
// flushes everything, and writes a chain that drops forwarded packets by default and
// has the given number of rules.
func reloadFirewall(rules int) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	conn.FlushRuleset()
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"})
	policy := nftables.ChainPolicyDrop
	chain := conn.AddChain(&nftables.Chain{
		Name: "FORWARD", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &policy,
	})
	for range rules {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Counter{}}})
	}
	return conn.Flush()
}

func removeFirewall(t *testing.T) {
	t.Helper()
	conn, err := nftables.New()
	if err == nil {
		table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"}
		conn.AddTable(table) // deleting a table that does not exist would fail
		conn.DelTable(table)
		err = conn.Flush()
	}
	if err != nil {
		t.Error(err)
	}
}

// TestWatchRestores checks that rules come back after each reload.
func TestWatchRestores(t *testing.T) {
	m := newManager(t)
	listen(t, worldNS, publicAddr+":80")
	p := newPair(t, m, "one")
	defer removeFirewall(t)
	stop := startWatch(t, m)
	defer stop()
	restored := func() bool { return m.VerifyHost(ctx(t)) == nil }
	for _, rules := range []int{0, 100, 0} {
		if err := reloadFirewall(rules); err != nil {
			t.Fatal(err)
		}
		waitFor(t, fmt.Sprintf("the rules are restored after a reload of %d rules", rules), restored)
	}
	if !reaches(ProxyPath(p.dir), publicAddr+":80", controlTime) {
		t.Error("the proxy does not reach the world after the rules were restored")
	}
	// ip_forward itself causes no event, but the next reload restores it, too.
	inNS(t, "", func() error { return writeSysctl("ipv4/ip_forward", "0") })
	if err := reloadFirewall(0); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "ip_forward is restored", restored)
	// Control: without a watcher nothing is restored.
	stop()
	if err := reloadFirewall(0); err != nil {
		t.Fatal(err)
	}
	if err := m.VerifyHost(ctx(t)); !errors.Is(err, ErrFlushed) {
		t.Errorf("VerifyHost after a reload without a watcher: %v", err)
	}
}

// TestEventsOverflow checks that a reload with more events than the socket can queue is
// seen and does not end the watch.
func TestEventsOverflow(t *testing.T) {
	defer removeFirewall(t)
	overflow := func() *ruleEvents {
		t.Helper()
		events, err := subscribe()
		if err != nil {
			t.Fatal(err)
		}
		raw, err := events.f.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var serr error
		if err := raw.Control(func(fd uintptr) {
			serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1)
		}); err != nil || serr != nil {
			t.Fatal(err, serr)
		}
		for range 3 {
			if err := reloadFirewall(100); err != nil {
				t.Fatal(err)
			}
		}
		return events
	}
	// Control: the events do not fit.
	control := overflow()
	if _, err := control.f.Read(make([]byte, 16)); !errors.Is(err, unix.ENOBUFS) {
		t.Errorf("the events fit into the buffer: %v", err)
	}
	if err := control.f.Close(); err != nil {
		t.Error(err)
	}
	events := overflow()
	changed, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() { ended <- events.forward(changed) }()
	for range 2 { // after the overflow, and after another change
		select {
		case <-changed:
		case err := <-ended:
			t.Fatal(err)
		case <-ctx(t).Done():
			t.Fatal("no event")
		}
		if err := reloadFirewall(0); err != nil {
			t.Fatal(err)
		}
	}
	if err := events.f.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil {
		t.Error("forward ended without an error after its socket was closed")
	}
}

// TestWatchBounded checks that the number of checks is bounded by the time, not by the
// number of changes, and that a watcher slows down if it cannot restore the rules: its
// attempts change the ruleset, too.
func TestWatchBounded(t *testing.T) {
	m := newManager(t)
	newPair(t, m, "one")
	defer removeFirewall(t)
	watch := func(during func()) (checks int, took time.Duration) {
		t.Helper()
		w := watcher{m: m}
		c, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		began := time.Now()
		go func() { ended <- w.run(c) }()
		during()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		return w.checks, time.Since(began)
	}
	checks, took := watch(func() {
		for range 100 {
			if err := reloadFirewall(1); err != nil {
				t.Fatal(err)
			}
		}
	})
	if limit := 1 + int(took/watchInterval); checks > limit {
		t.Errorf("%d checks within %v, want at most %d", checks, took, limit)
	}

	removeFirewall(t)
	inNS(t, "", func() error { return deleteLink("bottle0") })
	if err := m.VerifyHost(ctx(t)); !errors.Is(err, ErrFlushed) {
		t.Fatalf("VerifyHost without the bridge: %v", err)
	}
	before := generationOf(t)
	checks, took = watch(func() { time.Sleep(4 * watchInterval) })
	// After 0, 1 and 3 intervals, and so on.
	limit := 0
	for d, next := time.Duration(0), watchInterval; d <= took; d, next = d+next, 2*next {
		limit++
	}
	if checks > limit {
		t.Errorf("%d attempts within %v, want at most %d", checks, took, limit)
	}
	// Control: each attempt changes the ruleset, which causes an event.
	if after := generationOf(t); after == before {
		t.Error("the attempts did not change the ruleset")
	}
	if shape, err := tableShape(); err != nil || shape == nil {
		t.Errorf("the table was not restored without the bridge: %v, %v", shape, err)
	}
}

func generationOf(t *testing.T) uint32 {
	t.Helper()
	g, err := generation()
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// TestFirewallReloads checks that bottles can be created, verified and removed while
// the host's firewall is reloaded continuously.
func TestFirewallReloads(t *testing.T) {
	m := newManager(t)
	before := hostState(t)
	dir := makeBottleDir(t, "one")
	done := make(chan struct{})
	reloads := make(chan error, 1)
	count := 0
	go func() {
		for {
			select {
			case <-done:
				reloads <- nil
				return
			case <-time.After(time.Millisecond):
			}
			if err := reloadFirewall(count % 100); err != nil {
				reloads <- err
				return
			}
			count++
		}
	}()
	for range 10 {
		// Verify may fail, as the reload removes the rules.
		if _, err := attach(ctx(t), m, dir, nil); err != nil && !errors.Is(err, ErrMismatch) {
			t.Error(err)
		}
		if _, err := m.Check(ctx(t)); err != nil {
			t.Error(err)
		}
		if err := m.Refresh(ctx(t)); err != nil {
			t.Error(err)
		}
		if err := m.Remove(ctx(t), dir); err != nil {
			t.Error(err)
		}
	}
	close(done)
	if err := <-reloads; err != nil {
		t.Error(err)
	}
	t.Logf("%d reloads", count)
	removeFirewall(t)
	removeBottleDir(t, dir)
	checkUnchanged(t, before)
}
