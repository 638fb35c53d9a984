package runtime_test

import (
	"bufio"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/runtime"
)

// forkScript starts child processes until fork fails, and prints their number and the
// error.
const forkScript = `my (@p, $why);
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
	forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		cfg.Pids = 60
		started(t, c, cfg)
		r := run(t, c, cfg.Name, runtime.SessionConfig{Args: []string{"perl", "-e", forkScript}})
		var n int
		var why string
		if _, err := fmt.Sscan(r.out, &n, &why); err != nil || why != "EAGAIN" || n < 20 || n >= 60 {
			t.Errorf("with a limit of 60 processes: %+v", r)
		}
		if cfg.Runtime == runtime.RuntimeRunc { // gVisor enforces the limit inside the sandbox
			wantLimits(t, r.limits, runtime.LimitError{Limit: runtime.LimitPids, Value: 60})
		}
		// The bottle keeps running and can start processes again.
		if got := script(t, c, cfg.Name, "echo still here"); got != "still here" {
			t.Errorf("after reaching the limit: %q", got)
		}
	})
}

// TestPidsLimitIgnoresHostProcesses: host processes with the agent's user ID do not
// count towards its limit.
func TestPidsLimitIgnoresHostProcesses(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
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
	forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		cfg.Memory, cfg.CPUs = 300<<20, 0.5
		task := started(t, c, cfg)
		if got := cgroupValue(t, task.PID(), "memory", "memory.limit_in_bytes", "memory.max"); got != strconv.Itoa(300<<20) {
			t.Errorf("memory limit: %q", got)
		}
		// Version 1 counts memory and swap together.
		if got := cgroupValue(t, task.PID(), "memory", "memory.memsw.limit_in_bytes", "memory.swap.max"); got != strconv.Itoa(300<<20) && got != "0" {
			t.Errorf("swap limit: %q", got)
		}
		if got := cgroupValue(t, task.PID(), "cpu", "cpu.cfs_quota_us", "cpu.max"); got != "50000" && got != "50000 100000" {
			t.Errorf("CPU limit: %q", got)
		}
	})
}

// TestLimitsInside: programs in the agent's task see its CPU and memory limits.
func TestLimitsInside(t *testing.T) {
	for _, cpus := range []float64{0.5, 1, 2} {
		t.Run(fmt.Sprint(cpus), func(t *testing.T) {
			forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
				cfg.CPUs = cpus
				started(t, c, cfg)
				got := strings.Fields(script(t, c, cfg.Name, `cd /sys/fs/cgroup; nproc
					if [ -e cpu.max ]; then cat cpu.max memory.max; else
					cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us memory/memory.limit_in_bytes; fi`))
				nproc := goruntime.NumCPU()
				if cfg.Runtime == runtime.RuntimeRunsc {
					nproc = min(nproc, max(2, int(math.Ceil(cpus))))
				}
				want := []string{strconv.Itoa(nproc), strconv.Itoa(int(cpus * 100_000)), "100000", strconv.FormatInt(cfg.Memory, 10)}
				if !slices.Equal(got, want) {
					t.Errorf("CPUs, quota, period, memory: %q, want %q", got, want)
				}
				if cfg.Runtime == runtime.RuntimeRunsc {
					return
				}
				mounts := script(t, c, cfg.Name, "grep ' - cgroup' /proc/self/mountinfo")
				for line := range strings.Lines(mounts) {
					if root := strings.Fields(line)[3]; root != "/" {
						t.Errorf("the agent sees the host's cgroup path %s", root)
					}
				}
			})
		})
	}
}

// TestMemoryLimitExceeded: a session whose agent exceeds its memory limit ends with 137
// and reports the limit. Under runsc the complete sandbox is killed.
func TestMemoryLimitExceeded(t *testing.T) {
	for _, terminal := range []bool{false, true} {
		t.Run(fmt.Sprintf("terminal %v", terminal), func(t *testing.T) {
			forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
				cfg.Memory = 128 << 20
				started(t, c, cfg)
				if r := run(t, c, cfg.Name, runtime.SessionConfig{Args: []string{"true"}, Terminal: terminal}); r.killed || len(r.limits) > 0 {
					t.Errorf("a session below the limit: %+v", r)
				}
				r := run(t, c, cfg.Name, runtime.SessionConfig{Args: []string{guestInit, "allocate"}, Terminal: terminal})
				want := runtime.LimitError{Limit: runtime.LimitMemory, Value: cfg.Memory}
				if r.code != 137 || strings.TrimSpace(r.out) != "allocating" || r.err != "" || r.killed != (cfg.Runtime == runtime.RuntimeRunsc) {
					t.Errorf("allocate 1 GiB: %+v", r)
				}
				wantLimits(t, r.limits, want)
				reached, err := c.LimitsReached(ctx(t), cfg.Name)
				must(t, err)
				wantLimits(t, reached, want)
				if cfg.Runtime == runtime.RuntimeRunc {
					if r := run(t, c, cfg.Name, runtime.SessionConfig{Args: []string{"true"}}); r.code != 0 || len(r.limits) > 0 {
						t.Errorf("the next session: %+v", r)
					}
					return
				}
				_, err = c.Exec(ctx(t), cfg.Name, runtime.SessionConfig{Args: []string{"true"}})
				var limit *runtime.LimitError
				if !errors.Is(err, runtime.ErrNotRunning) || !errors.As(err, &limit) || *limit != want {
					t.Errorf("a session in a killed sandbox: %v", err)
				}
			})
		})
	}
}

// guestAllocate uses 1 GiB of memory.
func guestAllocate() {
	fmt.Println("allocating")
	block := make([]byte, 1<<30)
	for i := 0; i < len(block); i += 4096 {
		block[i] = 1
	}
	fmt.Println("allocated")
}

func TestDiskLimit(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		cfg.Disk = 64 << 20
		started(t, c, cfg)
		dd := func(mib int) runtime.SessionConfig {
			return runtime.SessionConfig{Args: []string{"dd", "if=/dev/zero", "of=/home/agent/file", "bs=1M", fmt.Sprintf("count=%d", mib)}}
		}
		if r := run(t, c, cfg.Name, dd(50)); r.code != 0 || len(r.limits) > 0 {
			t.Errorf("below the limit: %+v", r)
		}
		r := run(t, c, cfg.Name, dd(80))
		if cfg.Runtime == runtime.RuntimeRunc { // has no disk limit
			if r.code != 0 || len(r.limits) > 0 {
				t.Errorf("%+v", r)
			}
			return
		}
		wantLimits(t, r.limits, runtime.LimitError{Limit: runtime.LimitDisk, Value: cfg.Disk})
		script(t, c, cfg.Name, "rm /home/agent/file")
		if r := run(t, c, cfg.Name, dd(50)); r.code != 0 || len(r.limits) > 0 {
			t.Errorf("below the limit again: %+v", r)
		}
	})
}

// TestProxyLimit: a proxy that was killed by its memory limit reports it until its
// removal.
func TestProxyLimit(t *testing.T) {
	leakcheck.Check(t)
	c := connect(t)
	task, _ := proxy(t, c, "claude-bottle-test-proxy", "allocate")
	if st := <-task.Exited(); st.ExitCode() != 137 {
		t.Errorf("exit code %d", st.ExitCode())
	}
	reached, err := c.LimitsReached(ctx(t), task.ID)
	must(t, err)
	wantLimits(t, reached, runtime.LimitError{Limit: runtime.LimitMemory, Value: 256 << 20})
	remove(t, c, task.ID)
	if reached, err := c.LimitsReached(ctx(t), task.ID); len(reached) > 0 || err != nil {
		t.Errorf("after the removal: %v, %v", reached, err)
	}
}

func wantLimits(t *testing.T, got []*runtime.LimitError, want ...runtime.LimitError) {
	t.Helper()
	var list []runtime.LimitError
	for _, l := range got {
		list = append(list, *l)
	}
	if !slices.Equal(list, want) {
		t.Errorf("limits reached: %v, want %v", list, want)
	}
}

// cgroupValue reads a file of a process's cgroup, under cgroup version 1 or 2
// (cgroups(7)).
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
	t.Fatalf("process %d has no cgroup of controller %s", pid, controller)
	return ""
}

// cgroupFile finds the cgroup by its last component, because the path in
// /proc/PID/cgroup depends on the reader's cgroup namespace.
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

// parent returns the parent of a process.
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
