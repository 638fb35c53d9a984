package runtime_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/bot-bottle/bottle/runtime"
)

// forks starts children until it is refused, and tells how many there were and
// why there were no more.
const forks = `my (@p, $why);
for (1..2000) {
	my $p = fork();
	if (!defined $p) { $why = $!{EAGAIN} ? "EAGAIN" : "$!"; last }
	if (!$p) { sleep 600; exit }
	push @p, $p;
}
kill 9, @p;
waitpid $_, 0 for @p;
print scalar(@p), " $why\n";`

func TestPidsLimit(t *testing.T) {
	underEach(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		cfg.Pids = 60
		started(t, c, cfg)
		r := run(t, c, cfg.Name, runtime.SessionConfig{Args: []string{"perl", "-e", forks}})
		var n int
		var why string
		if _, err := fmt.Sscan(r.out, &n, &why); err != nil || why != "EAGAIN" || n < 20 || n >= 60 {
			t.Errorf("at a limit of 60 processes: %+v", r)
		}
		// The bottle lives on, and has room again.
		if got := script(t, c, cfg.Name, "echo still here"); got != "still here" {
			t.Errorf("after the limit was met: %q", got)
		}
	})
}

// TestPidsOfOthers: the host's own processes of the agent's user id, and those
// of another bottle, do not count as the agent's.
func TestPidsOfOthers(t *testing.T) {
	underEach(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		for range 40 {
			cmd := exec.Command("sleep", "600")
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		}
		cfg.Pids = 30
		started(t, c, cfg)
		if got := script(t, c, cfg.Name, "true | true; echo $(id -u)"); got != "1000" {
			t.Errorf("%q", got)
		}
	})
}

func TestMemoryAndCPULimits(t *testing.T) {
	underEach(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		cfg.Memory, cfg.CPUs = 300<<20, 0.5
		task := started(t, c, cfg)
		if got := cgroupValue(t, task.PID(), "memory", "memory.limit_in_bytes", "memory.max"); got != strconv.Itoa(300<<20) {
			t.Errorf("memory limit in force: %q", got)
		}
		// Version 1 counts memory and swap together.
		if got := cgroupValue(t, task.PID(), "memory", "memory.memsw.limit_in_bytes", "memory.swap.max"); got != strconv.Itoa(300<<20) && got != "0" {
			t.Errorf("swap limit in force: %q", got)
		}
		if got := cgroupValue(t, task.PID(), "cpu", "cpu.cfs_quota_us", "cpu.max"); got != "50000" && got != "50000 100000" {
			t.Errorf("CPU limit in force: %q", got)
		}
	})
}

// TestMemoryLimitHits: an agent that takes more than its share is ended, and can
// still be removed.
func TestMemoryLimitHits(t *testing.T) {
	underEach(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		cfg.Memory = 128 << 20
		started(t, c, cfg)
		r := run(t, c, cfg.Name, runtime.SessionConfig{
			Args: []string{"perl", "-e", `my $x = "x" x (1 << 30); print length $x`},
		})
		if r.code == 0 || strings.Contains(r.out, "1073741824") {
			t.Errorf("1 GiB was had under a limit of 128 MiB: %+v", r)
		}
	})
}

// cgroupValue reads what the kernel holds for a process's cgroup, under the
// first or the second version of cgroups (cgroups(7)).
func cgroupValue(t *testing.T, pid int, controller, v1, v2 string) string {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { must(t, f.Close()) }()
	for s := bufio.NewScanner(f); s.Scan(); {
		parts := strings.SplitN(s.Text(), ":", 3)
		for _, name := range strings.Split(parts[1], ",") {
			if name == controller {
				return cgroupFile(t, parts[2], filepath.Join("/sys/fs/cgroup", controller), v1)
			}
		}
		if parts[0] == "0" {
			if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
				return cgroupFile(t, parts[2], "/sys/fs/cgroup", v2)
			}
		}
	}
	t.Fatalf("process %d is in no cgroup of %s", pid, controller)
	return ""
}

// cgroupFile finds the cgroup by its last component, as the path that a process
// is shown depends on the reader's cgroup namespace.
func cgroupFile(t *testing.T, group, root, file string) string {
	t.Helper()
	path := filepath.Join(root, group, file)
	if _, err := os.Stat(path); err != nil {
		found, _ := filepath.Glob(filepath.Join(root, "*", filepath.Base(group), file))
		if len(found) != 1 {
			t.Fatalf("no %s of %s under %s: %v", file, group, root, err)
		}
		path = found[0]
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// parent is the parent of a process.
func parent(t *testing.T, pid int) int {
	t.Helper()
	n, err := strconv.Atoi(status(t, pid)["PPid"])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// status reads /proc/PID/status.
func status(t *testing.T, pid int) map[string]string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{}
	for _, line := range strings.Split(string(data), "\n") {
		k, v, _ := strings.Cut(line, ":")
		m[k] = strings.Join(strings.Fields(v), " ")
	}
	return m
}
