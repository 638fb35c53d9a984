package runtime

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/bot-bottle/bottle/internal/hosttask"
)

// Usage is what an agent's task uses.
type Usage struct {
	Name   string
	At     time.Time     // of the measurement
	CPU    time.Duration // processor time since the start
	Memory int64         // bytes, without page cache that the kernel could free
	Pids   int           // processes in the sandbox
	Disk   int64         // bytes written to the root file system; 0 under runc, where it is not counted
	Limits Limits
}

// Usage measures a running task. The error wraps ErrNotRunning if there is none.
func (c *Client) Usage(ctx context.Context, id string) (Usage, error) {
	ctx = c.withNamespace(ctx)
	cont, err := c.ctrd.LoadContainer(ctx, id)
	if err != nil {
		return Usage{}, fmt.Errorf("load container %s: %w", id, notRunning(err))
	}
	spec, err := cont.Spec(ctx)
	if err != nil {
		return Usage{}, fmt.Errorf("read spec of %s: %w", id, err)
	}
	task, err := taskOf(ctx, cont)
	if errdefs.IsNotFound(err) || err == nil && notStarted(ctx, task) {
		return Usage{}, fmt.Errorf("load task %s: %w", id, ErrNotRunning)
	}
	if err != nil {
		return Usage{}, err
	}
	pids, err := task.Pids(ctx)
	if err != nil {
		return Usage{}, fmt.Errorf("list processes of %s: %w", id, notRunning(err))
	}
	u := Usage{Name: id, At: time.Now(), Pids: len(pids), CPU: c.cpuTime(id), Memory: c.memory(id), Limits: limitsOf(spec)}
	u.Disk, err = c.diskUsage(ctx, id, spec)
	return u, err
}

func limitsOf(s *specs.Spec) Limits {
	return Limits{Memory: memoryLimit(s), CPUs: cpuLimit(s), Pids: pidsLimit(s), Disk: diskLimit(s)}
}

// cpuTime returns the processor time of a container's cgroup: of cgroup version 2 in
// microseconds, of version 1 in nanoseconds.
func (c *Client) cpuTime(id string) time.Duration {
	if n := hosttask.Counter(c.cgroupPath(id), "", "cpu.stat", "usage_usec"); n > 0 {
		return time.Duration(n) * time.Microsecond
	}
	return time.Duration(c.cgroupNumber(id, "cpuacct", "cpuacct.usage"))
}

// memory returns the memory of a container's cgroup, computed as docker stats does.
func (c *Client) memory(id string) int64 {
	if n := c.cgroupNumber(id, "", "memory.current"); n > 0 {
		return n - hosttask.Counter(c.cgroupPath(id), "", "memory.stat", "inactive_file")
	}
	return c.cgroupNumber(id, "memory", "memory.usage_in_bytes") - hosttask.Counter(c.cgroupPath(id), "memory", "memory.stat", "total_inactive_file")
}

// cgroupNumber reads a file of a container's cgroup that contains one number. The
// controller is empty for cgroup version 2.
func (c *Client) cgroupNumber(id, controller, file string) int64 {
	data, err := os.ReadFile(filepath.Join(hosttask.CgroupRoot, controller, c.cgroupPath(id), file))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	return n
}

// diskUsage returns the size of the writable layer of a runsc task. gVisor keeps it in a
// file in the root file system, which occupies as much space as is in use.
func (c *Client) diskUsage(ctx context.Context, id string, spec *specs.Spec) (int64, error) {
	if !isRunsc(spec) {
		return 0, nil
	}
	mounts, err := c.ctrd.SnapshotService(c.cfg.Snapshotter).Mounts(ctx, id)
	if errdefs.IsNotFound(err) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("get mounts of %s: %w", id, err)
	}
	used, err := hosttask.Occupied(filepath.Join(writableDir(mounts), filestore+id))
	if err != nil {
		return 0, fmt.Errorf("get disk usage of %s: %w", id, err)
	}
	return used, nil
}
