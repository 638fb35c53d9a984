package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/internal/unmount"
)

// TestReboot takes from bottles what a restart of the host takes: all processes,
// namespaces, links, rules, and everything on tmpfs. Images, logs and the agent's work are
// left, the lost bottles are listed as that, new bottles start, and cleanup removes the rest
// except the work.
func TestReboot(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	for _, runtime := range []string{"runsc", "runc"} {
		name := "claude-bottle-lost-" + runtime
		begin(t, u.command("run", "wait", "--proxy", "builtin", "--runtime", runtime, "--yes", "--name", name), name)
		// For the egress log.
		u.exec(name, "curl", "-sS", "-m", "10", "-o", "/dev/null", "https://refused.test/")
	}
	const work = "claude-bottle-lost-work"
	begin(t, u.command("run", "wait", "--proxy", "builtin", "--yes", "--cwd", "--name", work), work)
	u.exec(work, "sh", "-c", "echo done >/workspace/new; curl -sS -m 10 -o /dev/null http://refused.test/").want(t, 0, "")
	u.write("pool.yaml", "version: 1\nbottles: {dev: {proxy: {kind: builtin}}}\nagents: {ready: {bottle: dev, command: [echo, ready], pool: 1}}\n")
	pool := func(args ...string) result {
		t.Helper()
		r := u.bottle(append([]string{"--manifest", filepath.Join(u.dir, "pool.yaml")}, args...)...)
		if r.code != 0 {
			t.Errorf("%q: exit %d\n%s", args, r.code, r.stderr)
		}
		return r
	}
	pool("pool", "fill", "--trust")
	u.waitPrepared("claude-bottle-ready")
	crashHost(t)
	r := u.bottle("list", "-a")
	for _, name := range []string{"claude-bottle-lost-runsc", "claude-bottle-lost-runc", work} {
		if !lineWith(r.stdout, name, "lost when the host restarted") {
			t.Errorf("%s is not listed as lost:\n%s", name, r.stdout)
		}
		if r := u.bottle("egress", name); r.code != 0 || !strings.Contains(r.stdout, "refused.test") {
			t.Errorf("egress log of %s: exit %d: %s%s", name, r.code, r.stdout, r.stderr)
		}
	}
	// A prepared bottle is not used any more, and the next fill removes it.
	if r := pool("pool", "list"); !lineWith(r.stdout, "claude-bottle-ready", "dead") {
		t.Errorf("prepared:\n%s", r.stdout)
	}
	if r := pool("run", "ready", "--yes", "--trust"); r.stdout != "ready\n" || !strings.Contains(r.stderr, "none is ready for this run") {
		t.Errorf("a run after the crash: %s%s", r.stdout, r.stderr)
	}
	pool("pool", "fill", "--trust")
	if r := pool("pool", "list"); !lineWith(r.stdout, "claude-bottle-ready", "prepared") || lineWith(r.stdout, "claude-bottle-ready", "dead") {
		t.Errorf("prepared after a fill:\n%s", r.stdout)
	}
	pool("pool", "drain")
	// IPAM does not remember the addresses of the dead.
	u.run("sh", "-c", "echo new").want(t, 0, "new\n")
	if r := u.bottle("cleanup", "--yes"); r.code != 0 {
		t.Errorf("cleanup: exit %d: %s", r.code, r.stderr)
	}
	list := u.listed("-a")
	if s := list[work]; len(list) != 1 || s.Status != "kept" || s.Work == nil || !s.Work.Unfetched {
		t.Errorf("after cleanup: %+v, want the work of %s", list, work)
	}
	u.bottle("apply", work).want(t, 0, "A new\n")
	if got, err := os.ReadFile(filepath.Join(u.dir, "new")); string(got) != "done\n" || err != nil {
		t.Errorf("the agent's work: %q, %v", got, err)
	}
	u.bottle("rm", "--discard", work).want(t, 0, work+"\n")
	u.bottle("list", "-a", "--json").want(t, 0, "[]\n")
	// Containerd removes its own empty directories of lost tasks at a start at which it
	// knows tasks of the namespace again.
	restartContainerd(t, "both")
}

func lineWith(text string, parts ...string) bool {
	for line := range strings.Lines(text) {
		if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
			return true
		}
	}
	return false
}

// crashHost ends the bottles and containerd as a crash of the host would, and starts
// containerd again.
func crashHost(t *testing.T) {
	t.Helper()
	restartContainerd(t, "kill")
	namespace := os.Getenv("CONTAINERD_NAMESPACE")
	for range 3 { // a dying process may just have started another one
		killCgroups(t, "/sys/fs/cgroup", namespace+"--")
		killAll(t, func(args string) bool {
			return strings.Contains(args, namespace) && (strings.Contains(args, "shim") || strings.Contains(args, "runsc")) ||
				strings.Contains(args, "run --trust wait") || strings.Contains(args, " -id claude-bottle-") || strings.Contains(args, " proxy-log ")
		})
	}
	for _, dir := range []string{"/run/bottle", "/run/lab/containerd/io.containerd.runtime.v2.task/" + namespace} {
		if err := unmount.Below(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"/run/containerd/s", "/run/containerd/fifo"} {
		entries, err := os.ReadDir(dir)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, e := range entries {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	if out, err := exec.Command("sh", "-c", "ip link delete bottle0; nft delete table inet bottle; echo 0 >/proc/sys/net/ipv4/ip_forward").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	restartContainerd(t, "start")
}

func restartContainerd(t *testing.T, verb string) {
	t.Helper()
	if out, err := exec.Command("../../../scripts/lab.d/restart-containerd.sh", verb).CombinedOutput(); err != nil {
		t.Fatalf("%s containerd: %v: %s", verb, err, out)
	}
}

// killCgroups kills what is in the cgroups whose names have the prefix, and removes them.
func killCgroups(t *testing.T, root, prefix string) {
	t.Helper()
	var dirs []string
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.HasPrefix(d.Name(), prefix) {
			dirs = append(dirs, path)
		}
		return nil // it may be removed meanwhile
	})
	for _, dir := range dirs {
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			if err != nil {
				break
			}
			for _, f := range strings.Fields(string(data)) {
				if pid, err := strconv.Atoi(f); err == nil {
					_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
				}
			}
			if os.Remove(dir) == nil {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("cgroup %s remains", dir)
			}
		}
	}
}

// killAll kills the processes with matching arguments and waits for their ends.
func killAll(t *testing.T, match func(args string) bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		found := ""
		lines, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is valid
		for _, line := range lines {
			data, _ := os.ReadFile(line) // it may have ended
			args := strings.ReplaceAll(string(data), "\x00", " ")
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(line)))
			if err == nil && pid != os.Getpid() && match(args) {
				found = fmt.Sprintf("%d %s", pid, args)
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
			}
		}
		if found == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("process %s remains", found)
		}
	}
}
