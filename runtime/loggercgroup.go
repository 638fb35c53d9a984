package runtime

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/bot-bottle/bottle/internal/hosttask"
)

// A proxy's logger is a child of containerd's shim, in the shim's cgroup, so the agent
// could make it use CPU time without a bound. It gets a cgroup of its own: in the
// proxy's, the proxy's memory and process limits could end it, and with it the log.

// loggerSuffix is appended to a proxy's cgroup path to form that of its logger.
const loggerSuffix = ".log"

// limitLogger bounds the CPU time of the logger of a created proxy task by half of the
// proxy's. The proxy waits for a logger that is too slow. Without a CPU limit of the
// proxy, the logger has none.
func (c *Client) limitLogger(task *Task, file string) error {
	if task.spec.Linux.Resources.CPU == nil {
		return nil
	}
	loggers, err := findLoggers(task.PID(), file)
	if err != nil {
		return fmt.Errorf("find logger of %s: %w", task.ID, err)
	}
	group, err := makeCPUGroup(c.cgroupPath(task.ID)+loggerSuffix, task.spec.Linux.Resources.CPU)
	if err != nil {
		return fmt.Errorf("limit logger of %s: %w", task.ID, err)
	}
	for _, pid := range loggers {
		if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("limit logger of %s: %w", task.ID, err)
		}
	}
	return nil
}

// findLoggers returns the loggers that the shim of a task has started.
func findLoggers(pid int, file string) ([]int, error) {
	shim, err := parentOf(pid)
	if err != nil {
		return nil, err
	}
	children, err := childrenOf(shim)
	if err != nil {
		return nil, err
	}
	var out []int
	for _, child := range children {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", child))
		if bytes.HasSuffix(cmdline, []byte("\x00"+loggerCommand+"\x00"+file+"\x00")) {
			out = append(out, child)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("not running")
	}
	return out, nil
}

// makeCPUGroup creates a cgroup with half of a CPU limit, under cgroup version 1 or 2,
// and returns its directory.
func makeCPUGroup(path string, cpu *specs.LinuxCPU) (string, error) {
	quota, period := *cpu.Quota/2, *cpu.Period
	dir := filepath.Join(hosttask.CgroupRoot, "cpu", path)
	files := [][2]string{{"cpu.cfs_period_us", strconv.FormatUint(period, 10)}, {"cpu.cfs_quota_us", strconv.FormatInt(quota, 10)}}
	if _, err := os.Stat(filepath.Join(hosttask.CgroupRoot, "cgroup.controllers")); err == nil {
		dir = filepath.Join(hosttask.CgroupRoot, path)
		files = [][2]string{{"cpu.max", fmt.Sprintf("%d %d", quota, period)}}
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(dir, f[0]), []byte(f[1]), 0); err != nil {
			return "", err
		}
	}
	return dir, nil
}
