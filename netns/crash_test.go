package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestRemoveAfterStep stops a launch, or a removal, after each step: what is
// there then goes by name alone.
func TestRemoveAfterStep(t *testing.T) {
	m := newManager(t)
	whole := func(dir string) error {
		_, err := bring(context.Background(), m, dir, []netip.Addr{netip.MustParseAddr(private)})
		return err
	}
	for _, tt := range []struct {
		name  string
		steps func(dir string) error
	}{
		{"nothing", func(string) error { return nil }},
		{"file of a namespace", func(dir string) error { return os.WriteFile(AgentPath(dir), nil, 0o400) }},
		{"agent's namespace", func(dir string) error { return pin(AgentPath(dir), prepareNS) }},
		{"namespace pinned twice", func(dir string) error {
			return errors.Join(pin(AgentPath(dir), prepareNS), unix.Mount(ownNS, AgentPath(dir), "", unix.MS_BIND, ""))
		}},
		{"namespaces", func(dir string) error { _, err := m.Create(context.Background(), dir); return err }},
		{"internal", func(dir string) error {
			p, err := m.Create(context.Background(), dir)
			if err != nil {
				return err
			}
			return p.AttachInternal(context.Background())
		}},
		{"internal bridge only", func(dir string) error {
			_, err := m.Create(context.Background(), dir)
			return errors.Join(err, Do(ProxyPath(dir), func() error { return ensureBridge("internal0") }))
		}},
		{"egress policy", func(dir string) error {
			_, err := m.Create(context.Background(), dir)
			return errors.Join(err, writePolicy(dir, policy{}))
		}},
		{"forwarding remembered", func(dir string) error { return hostOnly(m, dir, m.rememberForwarding) }},
		{"bridge", func(dir string) error {
			return hostOnly(m, dir, m.rememberForwarding, func() error { return ensureBridge("bottle0") })
		}},
		{"host's settings changed", func(dir string) error {
			return hostOnly(m, dir, m.rememberForwarding, func() error { return writeSysctl("ipv4/ip_forward", "1") })
		}},
		{"plugins ran", func(dir string) error { return pluginsOnly(m, dir) }},
		{"egress", func(dir string) error {
			p, err := m.Create(context.Background(), dir)
			if err != nil {
				return err
			}
			return p.AttachEgress(context.Background(), nil)
		}},
		{"all", whole},
		{"all, namespaces gone", func(dir string) error {
			return errors.Join(whole(dir), unpin(AgentPath(dir)), unpin(ProxyPath(dir)))
		}},
		{"all, proxy's link gone", func(dir string) error {
			return errors.Join(whole(dir), Do(ProxyPath(dir), func() error { return deleteLink("eth0") }))
		}},
		{"all, CNI's cache gone", func(dir string) error { return errors.Join(whole(dir), removeCNIDir(dir)) }},
		{"all, lease gone", func(dir string) error { return errors.Join(whole(dir), os.RemoveAll(m.ipamDir())) }},
		{"all, host's rules gone", func(dir string) error { return errors.Join(whole(dir), removeTable()) }},
		{"all, bridge gone", func(dir string) error { return errors.Join(whole(dir), deleteLink("bottle0")) }},
		{"lock file left", func(dir string) error { return hostOnly(m, dir) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := state(t)
			dir := folder(t, "crashed")
			if err := tt.steps(dir); err != nil {
				t.Error(err)
			}
			if err := m.Remove(ctx(t), dir); err != nil {
				t.Error(err)
			}
			removeFolder(t, dir)
			unchanged(t, before)
		})
	}
}

// hostOnly does steps of an attachment on the host, under the lock.
func hostOnly(m *Manager, dir string, steps ...func() error) error {
	if err := writePolicy(dir, policy{}); err != nil {
		return err
	}
	l, err := m.acquire(context.Background())
	if err != nil {
		return err
	}
	defer l.release()
	for _, s := range steps {
		if err := s(); err != nil {
			return err
		}
	}
	return nil
}

func pluginsOnly(m *Manager, dir string) error {
	p, err := m.Create(context.Background(), dir)
	if err != nil {
		return err
	}
	n, err := m.network(p.confs.Egress, dir, p.id, ProxyPath(dir))
	if err != nil {
		return err
	}
	return hostOnly(m, dir, m.rememberForwarding, func() error { return ensureBridge("bottle0") }, func() error {
		_, err := n.add(context.Background())
		return err
	})
}

// A folder that somebody deleted takes its lease and its link with it.
func TestFolderDeleted(t *testing.T) {
	m := newManager(t)
	before := state(t)
	dir := folder(t, "one")
	if _, err := bring(ctx(t), m, dir, nil); err != nil {
		t.Fatal(err)
	}
	err := errors.Join(unpin(AgentPath(dir)), unpin(ProxyPath(dir)), os.RemoveAll(dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Refresh(ctx(t)); err != nil {
		t.Fatal(err)
	}
	removeFolder(t, dir)
	unchanged(t, before)
}

func eventually(t *testing.T, what string, fn func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); <-tick.C {
		if fn() {
			return
		}
	}
	t.Fatalf("waited in vain: %s", what)
}

// Remove goes on without plugins: it says so, and nothing is left all the same.
func TestRemoveWithoutPlugins(t *testing.T) {
	m := newManager(t)
	before := state(t)
	dir := folder(t, "one")
	if _, err := bring(ctx(t), m, dir, nil); err != nil {
		t.Fatal(err)
	}
	bare, err := New(Config{RunDir: runDir, PluginDirs: []string{t.TempDir()}})
	if err != nil {
		t.Fatal(err)
	}
	if err := bare.Remove(ctx(t), dir); err == nil {
		t.Error("no error although plugins are missing")
	}
	if err := m.Remove(ctx(t), dir); err != nil {
		t.Error(err)
	}
	removeFolder(t, dir)
	unchanged(t, before)
}

// TestKilledWhilePluginRuns kills a process whose plugin is at work. Remove
// waits for the plugin's end, and so finds all that it made.
func TestKilledWhilePluginRuns(t *testing.T) {
	m := newManager(t)
	before := state(t)
	dir := folder(t, "killed")
	slow, started, goOn := slowPlugin(t, m)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), hostEnv+"=attach", "ATTACH_DIR="+dir, "CNI_PATH="+slow+":"+os.Getenv("CNI_PATH"))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the plugin runs", func() bool { _, err := os.Stat(started); return err == nil })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	removed := make(chan error, 1)
	go func() { removed <- m.Remove(context.Background(), dir) }()
	select {
	case err := <-removed:
		t.Errorf("Remove did not wait for the plugin: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	if err := os.WriteFile(goOn, []byte("\n"), 0); err != nil {
		t.Fatal(err)
	}
	if err := <-removed; err != nil {
		t.Error(err)
	}
	removeFolder(t, dir)
	unchanged(t, before)
}

// slowPlugin is a bridge plugin whose ADD says that it runs, and goes on when a
// line is written to a fifo.
func slowPlugin(t *testing.T, m *Manager) (dir, started, goOn string) {
	t.Helper()
	dir = t.TempDir()
	started, goOn = filepath.Join(dir, "started"), filepath.Join(dir, "go-on")
	if err := unix.Mkfifo(goOn, 0o600); err != nil {
		t.Fatal(err)
	}
	stock, _ := m.findPlugin("bridge")
	script := fmt.Sprintf("#!/bin/sh\nif [ $CNI_COMMAND = ADD ]; then : >%s; read -r line <%s; fi\nexec %s\n", started, goOn, stock)
	if err := os.WriteFile(filepath.Join(dir, "bridge"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir, started, goOn
}

// attachAndWait is the process that TestKilledWhilePluginRuns kills.
func attachAndWait() int {
	m, err := New(Config{RunDir: runDir, PluginDirs: filepath.SplitList(os.Getenv("CNI_PATH"))})
	if err == nil {
		var p *Pair
		if p, err = m.Create(context.Background(), os.Getenv("ATTACH_DIR")); err == nil {
			err = p.AttachEgress(context.Background(), nil)
		}
	}
	fmt.Fprintln(os.Stderr, "attached before it was killed:", err)
	return 1
}

// A waiter whose context ends gives up, and the lock is free afterwards.
func TestLockWaits(t *testing.T) {
	m := newManager(t)
	before := state(t)
	l, err := m.acquire(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := m.acquire(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a lock that is held: %v", err)
	}
	// Whoever waits while the last one out removes the file gets a new one.
	got := make(chan error, 1)
	go func() {
		l, err := m.acquire(context.Background())
		if err == nil {
			defer l.release()
			if !l.current() {
				err = errors.New("got a lock whose file is gone")
			}
		}
		got <- err
	}()
	if err := m.removeNetDir(); err != nil {
		t.Fatal(err)
	}
	l.release()
	if err := <-got; err != nil {
		t.Error(err)
	}
	if err := m.Refresh(ctx(t)); err != nil {
		t.Error(err)
	}
	unchanged(t, before)
}

// A bridge of another kind in the way is an error, and stays.
func TestForeignInterface(t *testing.T) {
	m := newManager(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "bottle0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "foreign1"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := deleteLink("bottle0"); err != nil {
			t.Error(err)
		}
	})
	dir := folder(t, "one")
	if _, err := bring(ctx(t), m, dir, nil); err == nil {
		t.Error("attached to somebody else's interface")
	}
	if err := m.Remove(ctx(t), dir); err != nil {
		t.Error(err)
	}
	if l, err := linkByName("bottle0"); l == nil {
		t.Errorf("somebody else's interface is gone: %v", err)
	}
}
