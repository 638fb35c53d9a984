package runtime_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"

	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/runtime"
)

const noCaps = "0000000000000000"

// TestProxy checks the proxy's isolation as reported by the kernel.
func TestProxy(t *testing.T) {
	leakcheck.Check(t)
	c := connect(t)
	task, dir := proxy(t, c, "claude-bottle-test-proxy")
	st := status(t, task.PID())
	for k, want := range map[string]string{
		"Uid": "65534 65534 65534 65534", "Gid": "65534 65534 65534 65534", "Groups": "",
		"CapInh": noCaps, "CapPrm": noCaps, "CapEff": noCaps, "CapBnd": noCaps, "CapAmb": noCaps,
		"NoNewPrivs": "1", "Seccomp": "2",
	} {
		if st[k] != want {
			t.Errorf("%s is %q, want %q", k, st[k], want)
		}
	}
	// Read-only even for root.
	root := fmt.Sprintf("/proc/%d/root", task.PID())
	if err := os.WriteFile(root+"/written", nil, 0o600); !errors.Is(err, syscall.EROFS) {
		t.Errorf("write to the proxy's root: %v", err)
	}
	log := filepath.Join(dir, "proxy.log")
	want := "uid 65534, write: open /written: read-only file system, env hi\n"
	eventually(t, "the proxy's log has its output", func() bool {
		data, err := os.ReadFile(log)
		return err == nil && string(data) == want
	})
	if ns, want := link(t, fmt.Sprintf("/proc/%d/ns/net", task.PID())), link(t, "/proc/self/ns/net"); ns == want {
		t.Error("the proxy is in the host's network namespace")
	}
	if got := cgroupValue(t, task.PID(), "memory", "memory.limit_in_bytes", "memory.max"); got != "268435456" {
		t.Errorf("memory limit: %q", got)
	}
	if got := cgroupValue(t, task.PID(), "pids", "pids.max", "pids.max"); got != "512" {
		t.Errorf("task limit: %q", got)
	}
	if got := cgroupValue(t, task.PID(), "cpu", "cpu.cfs_quota_us", "cpu.max"); got != "150000" && got != "150000 100000" {
		t.Errorf("CPU limit: %q", got)
	}
}

// TestProxyLogger: the process that writes a proxy's log has half of the proxy's CPU
// limit, also after the proxy was restarted.
func TestProxyLogger(t *testing.T) {
	leakcheck.Check(t)
	c := connect(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const name = "claude-bottle-test-logger"
	cfg := proxyConfig(t, c, name, "proxy")
	cfg.Logger = self
	task := startedProxy(t, c, cfg)
	check := func() {
		t.Helper()
		eventually(t, "the logger has written the proxy's output", func() bool {
			data, _ := os.ReadFile(cfg.LogFile)
			return strings.HasPrefix(string(data), "uid 65534, ")
		})
		found, err := filepath.Glob("/proc/[0-9]*/cmdline")
		must(t, err)
		found = slices.DeleteFunc(found, func(f string) bool {
			data, _ := os.ReadFile(f)
			return string(data) != self+"\x00proxy-log\x00"+cfg.LogFile+"\x00"
		})
		if len(found) != 1 {
			t.Fatalf("loggers: %v", found)
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(found[0])))
		must(t, err)
		if got := cgroupValue(t, pid, "cpu", "cpu.cfs_quota_us", "cpu.max"); got != "75000" && got != "75000 100000" {
			t.Errorf("CPU limit of the logger: %q", got)
		}
		// It must not be subject to the proxy's memory and process limits.
		if got := cgroupValue(t, task.PID(), "pids", "cgroup.procs", "cgroup.procs"); strings.Contains(got, strconv.Itoa(pid)) {
			t.Errorf("the logger is in the proxy's cgroup: %s", got)
		}
	}
	check()
	must(t, syscall.Kill(task.PID(), syscall.SIGKILL))
	<-task.Exited()
	must(t, os.Remove(cfg.LogFile))
	if task, _, err = c.RecreateProxy(ctx(t), task.ID, cfg.Logger, cfg.LogFile); err != nil {
		t.Fatal(err)
	}
	must(t, task.Start(ctx(t)))
	check()
}

// proxyLogger is a minimal logger: it copies the output of a task to a file.
func proxyLogger(name string) int {
	f, err := os.Create(name)
	if err != nil {
		return 1
	}
	_ = os.NewFile(5, "ready").Close()
	var wg sync.WaitGroup
	for fd := range uintptr(2) {
		wg.Go(func() { _, _ = io.Copy(f, os.NewFile(3+fd, "output")) })
	}
	wg.Wait()
	return 0
}

func TestProxyEnds(t *testing.T) {
	leakcheck.Check(t)
	c := connect(t)
	task, dir := proxy(t, c, "claude-bottle-test-proxy")
	// PID 1 receives only signals that it handles; its output shows that it does.
	eventually(t, "the proxy has output", func() bool {
		data, _ := os.ReadFile(filepath.Join(dir, "proxy.log"))
		return len(data) > 0
	})
	must(t, syscall.Kill(task.PID(), syscall.SIGTERM))
	var st containerd.ExitStatus
	select {
	case st = <-task.Exited():
	case <-ctx(t).Done():
		t.Fatal("the proxy has not exited on SIGTERM")
	}
	if st.ExitCode() != 128+15 {
		t.Errorf("the proxy exited with %d (%v)", st.ExitCode(), st.Error())
	}
	remove(t, c, task.ID)
	remove(t, c, task.ID)
}

// proxy starts this binary as a proxy. It is removed after the test.
func proxy(t *testing.T, c *runtime.Client, name string, args ...string) (*runtime.Task, string) {
	t.Helper()
	if args == nil {
		args = []string{"proxy"}
	}
	cfg := proxyConfig(t, c, name, args...)
	return startedProxy(t, c, cfg), cfg.Dir
}

func proxyConfig(t *testing.T, c *runtime.Client, name string, args ...string) runtime.ProxyConfig {
	t.Helper()
	dir := bottleDir(t, c, name)
	rootfs := filepath.Join(dir, "rootfs")
	for _, d := range []string{".bottle", "proc", "sys", "dev"} {
		if err := os.MkdirAll(filepath.Join(rootfs, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	must(t, os.WriteFile(filepath.Join(rootfs, guestInit), nil, 0o755))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return runtime.ProxyConfig{
		Name: name, Dir: dir, NetNS: netNS(t, dir, "proxy.netns"), Hostname: "proxy",
		Args: append([]string{guestInit}, args...), Env: []string{"GREETING=hi"}, CPUs: 1.5,
		Mounts: []runtime.Mount{{Source: self, Target: guestInit}}, LogFile: filepath.Join(dir, "proxy.log"),
		Labels: map[string]string{runtime.LabelName: name, runtime.LabelRole: runtime.RoleProxy},
	}
}

func startedProxy(t *testing.T, c *runtime.Client, cfg runtime.ProxyConfig) *runtime.Task {
	t.Helper()
	t.Cleanup(func() { remove(t, c, cfg.Name+runtime.ProxySuffix) })
	task, err := c.CreateProxy(ctx(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(ctx(t)); err != nil {
		t.Fatal(err)
	}
	return task
}

func TestAgentHasNoPrivileges(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		started(t, c, cfg)
		out := script(t, c, cfg.Name, "cat /proc/self/status")
		for _, k := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd"} {
			if !strings.Contains(out, k+":\t"+noCaps) {
				t.Errorf("%s is not empty:\n%s", k, out)
			}
		}
		if !strings.Contains(out, "Uid:\t1000\t1000\t1000\t1000") {
			t.Errorf("not the image's user:\n%s", out)
		}
		r := run(t, c, cfg.Name, runtime.SessionConfig{Args: []string{"bash", "-c", "echo x >" + guestInit}})
		if r.code == 0 {
			t.Error("the agent wrote to bottle's program")
		}
	})
}

// TestRootFS: files are written before the task starts, with the requested owner, and
// replace symbolic links of the image.
func TestRootFS(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		files := []runtime.File{
			{Path: "/etc/resolv.conf", Mode: 0o644, Root: true, Data: []byte("# none\n")},
			{Path: "/home/agent/.config/deep/file", Mode: 0o600, Data: []byte("mine")},
			// A symbolic link in Debian.
			{Path: "/etc/mtab", Mode: 0o666, Root: true, Data: []byte("plain")},
			{Path: "/home/agent/own", Mode: fs.ModeDir | 0o700},
			{Path: "/home/agent", Mode: fs.ModeDir | 0o711}, // exists
			{Path: "/etc/shells", Mode: 0o600, Edit: func(old []byte) ([]byte, error) { return append([]byte("mine\n"), old...), nil }},
			{Path: "/home/agent/.config/link", Mode: fs.ModeSymlink, Link: "deep/file"},
			{Path: "/etc/none", Mode: 0o600, Edit: func(old []byte) ([]byte, error) { return fmt.Append(nil, old == nil), nil }},
		}
		r, err := c.PrepareRootFS(ctx(t), cfg.Name, image, withFiles(files...))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { remove(t, c, cfg.Name) })
		if r.User.UID != 1000 || r.User.GID != 1000 || r.User.Home != "/home/agent" || r.Config().WorkingDir != "/workspace" {
			t.Errorf("user %+v, working directory %q", r.User, r.Config().WorkingDir)
		}
		if _, err := c.PrepareRootFS(ctx(t), cfg.Name, image, nil); !errors.Is(err, runtime.ErrTaken) {
			t.Errorf("existing name: %v", err)
		}
		task, err := c.CreateAgent(ctx(t), cfg, r)
		if err != nil {
			t.Fatal(err)
		}
		if err := task.Start(ctx(t)); err != nil {
			t.Fatal(err)
		}
		got := script(t, c, cfg.Name, "cd /home/agent; stat -c '%n %U %a %s' /etc/resolv.conf ; stat -c '%n %U %a' .config/deep; stat -c '%n %U %a %s' .config/deep/file /etc/mtab; cat .config/deep/file; stat -c ' %n %U %a' own /home/agent /etc/shells; head -n 2 /etc/shells; cat /etc/none; readlink .config/link; cat .config/link; stat -c ' %U' .config/link")
		want := "/etc/resolv.conf root 644 7\n.config/deep agent 755\n.config/deep/file agent 600 4\n/etc/mtab root 666 5\nmine" +
			" own agent 700\n /home/agent agent 755\n /etc/shells agent 600\nmine\n# /etc/shells: valid login shells\ntruedeep/file\nmine agent"
		if got != want {
			t.Errorf("in the bottle:\n%s\nwant\n%s", got, want)
		}
	})
}

func withFiles(files ...runtime.File) func(*runtime.RootFS) ([]runtime.File, error) {
	return func(*runtime.RootFS) ([]runtime.File, error) { return files, nil }
}

func TestRootFSFails(t *testing.T) {
	leakcheck.Check(t)
	c := connect(t)
	const name = "claude-bottle-test-rootfs"
	if _, err := c.PrepareRootFS(ctx(t), name, "docker.io/library/absent:latest", nil); err == nil {
		t.Error("prepared a missing image")
	}
	// /etc/passwd is not a directory: the snapshot must be removed again.
	bad := []runtime.File{{Path: "/etc/passwd/x", Mode: 0o644}}
	if _, err := c.PrepareRootFS(ctx(t), name, image, withFiles(bad...)); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file below a regular file: %v", err)
	}
	wantGone(t, c, name)
	for _, f := range []runtime.File{
		{Path: "/etc", Edit: func([]byte) ([]byte, error) { return nil, nil }},
		{Path: "/etc/passwd", Edit: func([]byte) ([]byte, error) { return nil, errors.New("no") }},
		{Path: "/etc/passwd", Mode: fs.ModeSymlink, Link: "/etc/shells"},
	} {
		if _, err := c.PrepareRootFS(ctx(t), name, image, withFiles(f)); err == nil {
			t.Errorf("replacing %s succeeds", f.Path)
		}
	}
	wantGone(t, c, name)
}

// TestHardenHostProcesses: on a host short of memory the agent is killed first, and
// its shim keeps its score. No process that maps the agent's memory writes a core
// file.
func TestHardenHostProcesses(t *testing.T) {
	leakcheck.Check(t)
	c := connect(t)
	task := started(t, c, agentConfig(t, c, "claude-bottle-test-host", runtime.RuntimeRunsc))
	shim := parent(t, task.PID())
	before := oomScore(t, shim)
	must(t, task.HardenHostProcesses())
	script(t, c, task.ID, "setsid sleep 300 >/dev/null 2>&1 </dev/null &") // a stub created later
	pids := strings.Fields(cgroupValue(t, task.PID(), "pids", "cgroup.procs", "cgroup.procs"))
	seen := 0
	for _, pid := range pids {
		got := map[string]string{}
		for _, file := range []string{"oom_score_adj", "coredump_filter", "limits"} {
			data, _ := os.ReadFile(filepath.Join("/proc", pid, file))
			got[file] = string(data)
		}
		if got["coredump_filter"] == "" || got["limits"] == "" {
			continue // exited
		}
		seen++
		for file, want := range map[string]string{
			"oom_score_adj": `^500\n`, "coredump_filter": `^0+\n`, "limits": `\nMax core file size +0 +0 `,
		} {
			if !regexp.MustCompile(want).MatchString(got[file]) {
				t.Errorf("%s of process %s is %s", file, pid, got[file])
			}
		}
	}
	if seen < 5 { // sandbox, gofer, and those of the stubs
		t.Errorf("checked %[2]d of the processes %[1]v", pids, seen)
	}
	if got := oomScore(t, shim); got != before {
		t.Errorf("the shim's score changed from %s to %s", before, got)
	}
}

// TestScoresUnderRunc: agent and proxy do not inherit the shim's score, and the agent
// does not see the host's cgroups.
func TestScoresUnderRunc(t *testing.T) {
	leakcheck.Check(t)
	c := connect(t)
	task := started(t, c, agentConfig(t, c, "claude-bottle-test-scores", runtime.RuntimeRunc))
	if got := oomScore(t, task.PID()); got != "500" {
		t.Errorf("the agent's score is %s", got)
	}
	if got := script(t, c, task.ID, "cat /proc/1/cgroup"); strings.Contains(got, task.ID) {
		t.Errorf("the agent sees the host's cgroups: %s", got)
	}
	side, _ := proxy(t, c, "claude-bottle-test-scores-2")
	if got := oomScore(t, side.PID()); got != "100" {
		t.Errorf("the proxy's score is %s", got)
	}
}

func oomScore(t *testing.T, pid int) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func link(t *testing.T, path string) string {
	t.Helper()
	s, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
