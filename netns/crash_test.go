package netns

import (
	"context"
	"encoding/json"
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

	"github.com/bot-bottle/bottle/cni-conf"
)

// TestRemoveAfterStep stops a launch, or a removal, after each step. Remove must
// clean up from the name alone.
func TestRemoveAfterStep(t *testing.T) {
	m := newManager(t)
	complete := func(dir string) error {
		_, err := attach(context.Background(), m, dir, []netip.Addr{netip.MustParseAddr(private)})
		return err
	}
	for _, tt := range []struct {
		name  string
		steps func(dir string) error
	}{
		{"nothing", func(string) error { return nil }},
		{"namespace file only", func(dir string) error { return os.WriteFile(AgentPath(dir), nil, 0o400) }},
		{"agent's namespace", func(dir string) error { return pin(AgentPath(dir), setUpNS) }},
		{"namespace pinned twice", func(dir string) error {
			return errors.Join(pin(AgentPath(dir), setUpNS), unix.Mount(ownNS, AgentPath(dir), "", unix.MS_BIND, ""))
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
		{"forwarding saved", func(dir string) error { return hostOnly(m, dir, m.saveForwarding) }},
		{"bridge", func(dir string) error {
			return hostOnly(m, dir, m.saveForwarding, func() error { return ensureBridge("bottle0") })
		}},
		{"host's settings changed", func(dir string) error {
			return hostOnly(m, dir, m.saveForwarding, func() error { return writeSysctl("ipv4/ip_forward", "1") })
		}},
		{"plugins ran", func(dir string) error { return pluginsOnly(m, dir) }},
		{"egress", func(dir string) error {
			p, err := m.Create(context.Background(), dir)
			if err != nil {
				return err
			}
			return p.AttachEgress(context.Background(), nil)
		}},
		{"complete", complete},
		{"complete, namespaces missing", func(dir string) error {
			return errors.Join(complete(dir), unpin(AgentPath(dir)), unpin(ProxyPath(dir)))
		}},
		{"complete, proxy's link missing", func(dir string) error {
			return errors.Join(complete(dir), Do(ProxyPath(dir), func() error { return deleteLink("eth0") }))
		}},
		{"complete, CNI's cache missing", func(dir string) error { return errors.Join(complete(dir), removeCNIDir(dir)) }},
		{"complete, lease missing", func(dir string) error { return errors.Join(complete(dir), os.RemoveAll(m.ipamDir())) }},
		{"complete, host's rules missing", func(dir string) error { return errors.Join(complete(dir), removeTable()) }},
		{"complete, bridge missing", func(dir string) error { return errors.Join(complete(dir), deleteLink("bottle0")) }},
		{"lock file left", func(dir string) error { return hostOnly(m, dir) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := hostState(t)
			dir := makeBottleDir(t, "crashed")
			if err := tt.steps(dir); err != nil {
				t.Error(err)
			}
			if err := m.Remove(ctx(t), dir); err != nil {
				t.Error(err)
			}
			removeBottleDir(t, dir)
			checkUnchanged(t, before)
		})
	}
}

// hostOnly runs steps of an attachment on the host, holding the lock.
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
	return hostOnly(m, dir, m.saveForwarding, func() error { return ensureBridge("bottle0") }, func() error {
		_, err := n.add(context.Background())
		return err
	})
}

// After a bottle's directory was deleted, Refresh frees its lease and its link.
func TestDirectoryDeleted(t *testing.T) {
	m := newManager(t)
	before := hostState(t)
	dir := makeBottleDir(t, "one")
	if _, err := attach(ctx(t), m, dir, nil); err != nil {
		t.Fatal(err)
	}
	err := errors.Join(unpin(AgentPath(dir)), unpin(ProxyPath(dir)), os.RemoveAll(dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Refresh(ctx(t)); err != nil {
		t.Fatal(err)
	}
	removeBottleDir(t, dir)
	checkUnchanged(t, before)
}

func waitFor(t *testing.T, what string, fn func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); <-tick.C {
		if fn() {
			return
		}
	}
	t.Fatalf("timeout waiting until %s", what)
}

// TestRemoveWithoutPlugins: what bottle's own configuration creates is removed without plugins. With
// another plugin in the configuration they are run, as only they know what to remove: then Remove
// without plugins returns an error, and still removes everything else.
func TestRemoveWithoutPlugins(t *testing.T) {
	before := hostState(t)
	plugins := t.TempDir()
	confs := recordingConf(t, plugins)
	for _, conf := range []string{"", confs} {
		with, err := New(Config{RunDir: runDir, ConfDir: conf, PluginDirs: append(pluginDirs(t), plugins)})
		if err != nil {
			t.Fatal(err)
		}
		without, err := New(Config{RunDir: runDir, ConfDir: conf, PluginDirs: []string{t.TempDir()}})
		if err != nil {
			t.Fatal(err)
		}
		dir := makeBottleDir(t, "one")
		if _, err := attach(ctx(t), with, dir, nil); err != nil {
			t.Fatal(err)
		}
		if err := with.Remove(ctx(t), dir); err != nil {
			t.Error(err)
		}
		if _, err := attach(ctx(t), with, dir, nil); err != nil {
			t.Fatal(err)
		}
		if err := without.Remove(ctx(t), dir); (err != nil) != (conf != "") {
			t.Errorf("Remove without plugins, configuration %q: %v", conf, err)
		}
		if conf != "" {
			if err := with.Remove(ctx(t), dir); err != nil {
				t.Error(err)
			}
		}
		removeBottleDir(t, dir)
		checkUnchanged(t, before)
	}
	data, err := os.ReadFile(filepath.Join(plugins, recordedCalls))
	if err != nil || string(data) != "ADD\nDEL\nADD\n" {
		t.Errorf("the other plugin was called for %q, %v", data, err)
	}
}

const (
	recordPlugin  = "record"
	recordedCalls = "calls"
)

// recordingConf adds a plugin to the egress network, which recordCall is, and returns the
// directory of the configuration.
func recordingConf(t *testing.T, plugins string) (confs string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(plugins, recordPlugin)); err != nil {
		t.Fatal(err)
	}
	nets, err := cniconf.Load("")
	if err != nil {
		t.Fatal(err)
	}
	data, err := nets.Egress.JSON("")
	if err != nil {
		t.Fatal(err)
	}
	var list map[string]any
	if err := json.Unmarshal(data, &list); err != nil {
		t.Fatal(err)
	}
	list["plugins"] = append(list["plugins"].([]any), map[string]any{"type": recordPlugin})
	if data, err = json.Marshal(list); err != nil {
		t.Fatal(err)
	}
	confs = t.TempDir()
	if err := os.WriteFile(filepath.Join(confs, cniconf.EgressFile), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return confs
}

// recordCall is a CNI plugin that records the command and changes nothing.
func recordCall() error {
	f, err := os.OpenFile(filepath.Join(filepath.Dir(os.Args[0]), recordedCalls), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(f, os.Getenv("CNI_COMMAND")); err != nil {
		return err
	}
	var conf struct {
		PrevResult json.RawMessage `json:"prevResult"`
	}
	if err := errors.Join(f.Close(), json.NewDecoder(os.Stdin).Decode(&conf)); err != nil {
		return err
	}
	_, err = os.Stdout.Write(conf.PrevResult)
	return err
}

// TestKilledWhilePluginRuns kills a process while its plugin runs. Remove must wait
// until the plugin has ended, and then remove everything that it created.
func TestKilledWhilePluginRuns(t *testing.T) {
	m := newManager(t)
	before := hostState(t)
	dir := makeBottleDir(t, "killed")
	slow, started, proceed := slowPlugin(t, m)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), hostEnv+"=attach", "ATTACH_DIR="+dir, "CNI_PATH="+slow+":"+os.Getenv("CNI_PATH"))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the plugin runs", func() bool { _, err := os.Stat(started); return err == nil })
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
	if err := os.WriteFile(proceed, []byte("\n"), 0); err != nil {
		t.Fatal(err)
	}
	if err := <-removed; err != nil {
		t.Error(err)
	}
	removeBottleDir(t, dir)
	checkUnchanged(t, before)
}

// slowPlugin is a bridge plugin whose ADD creates a file when it starts, and
// continues when a line is written to a fifo.
func slowPlugin(t *testing.T, m *Manager) (dir, started, proceed string) {
	t.Helper()
	dir = t.TempDir()
	started, proceed = filepath.Join(dir, "started"), filepath.Join(dir, "proceed")
	if err := unix.Mkfifo(proceed, 0o600); err != nil {
		t.Fatal(err)
	}
	stock, _ := m.findPlugin("bridge")
	script := fmt.Sprintf("#!/bin/sh\nif [ $CNI_COMMAND = ADD ]; then : >%s; read -r line <%s; fi\nexec %s\n", started, proceed, stock)
	if err := os.WriteFile(filepath.Join(dir, "bridge"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir, started, proceed
}

// attachUntilKilled is the process that TestKilledWhilePluginRuns kills.
func attachUntilKilled() int {
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

// A waiter stops when its context ends, and does not keep the lock.
func TestLockWaits(t *testing.T) {
	m := newManager(t)
	before := hostState(t)
	l, err := m.acquire(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := m.acquire(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("acquire while the lock is held: %v", err)
	}
	// A waiter gets a new file if the lock's file is removed meanwhile.
	got := make(chan error, 1)
	go func() {
		l, err := m.acquire(context.Background())
		if err == nil {
			defer l.release()
			if _, serr := os.Lstat(m.lockFile()); serr != nil {
				err = errors.Join(serr, errors.New("acquired a lock whose file was removed"))
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
	checkUnchanged(t, before)
}

// An existing interface with the bridge's name is an error, and is not deleted.
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
	dir := makeBottleDir(t, "one")
	if _, err := attach(ctx(t), m, dir, nil); err == nil {
		t.Error("attached to a foreign interface")
	}
	if err := m.Remove(ctx(t), dir); err != nil {
		t.Error(err)
	}
	if l, err := linkByName("bottle0"); l == nil {
		t.Errorf("the foreign interface was deleted: %v", err)
	}
}
