package runtime

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Limit names a resource limit of a task.
type Limit string

// Limits that a task can reach. The CPU limit only slows a task down.
const (
	LimitMemory Limit = "memory"
	LimitPids   Limit = "pids"
	LimitDisk   Limit = "disk"
)

// LimitError reports that a task has reached a limit.
type LimitError struct {
	Limit Limit
	Value int64 // in bytes; for LimitPids the number of processes
}

func (e *LimitError) Error() string {
	if e.Limit == LimitPids {
		return fmt.Sprintf("limit of %d processes reached", e.Value)
	}
	return fmt.Sprintf("%s limit of %d bytes reached", e.Limit, e.Value)
}

// LimitsReached returns the limits that the task of a container has reached since it
// was created, also if it has ended, until its removal. It returns none if there is
// no such container.
//
// It cannot report that an agent under runsc reached its process limit, which gVisor
// enforces inside the sandbox.
func (c *Client) LimitsReached(ctx context.Context, id string) ([]*LimitError, error) {
	ctx = c.withNamespace(ctx)
	cont, err := c.ctrd.LoadContainer(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("load container %s: %w", id, err)
	}
	spec, err := cont.Spec(ctx)
	if err != nil {
		return nil, fmt.Errorf("read spec of %s: %w", id, err)
	}
	return c.limitsSince(ctx, id, spec, limitEvents{})
}

// limitEvents counts the events of a cgroup.
type limitEvents struct {
	oomKills int64 // processes killed because of the memory limit
	noPids   int64 // processes not created because of the process limit
}

// limitEvents reads a container's counters. A cgroup that does not exist has none.
func (c *Client) limitEvents(id string) limitEvents {
	// The same line is in a file of cgroup version 2 and, since Linux 4.13, in one of
	// version 1.
	return limitEvents{
		oomKills: max(c.cgroupCounter(id, "", "memory.events", "oom_kill"), c.cgroupCounter(id, "memory", "memory.oom_control", "oom_kill")),
		noPids:   max(c.cgroupCounter(id, "", "pids.events", "max"), c.cgroupCounter(id, "pids", "pids.events", "max")),
	}
}

// cgroupCounter reads a line "key value" of a file of a container's cgroup. The
// controller is empty for cgroup version 2.
func (c *Client) cgroupCounter(id, controller, file, key string) int64 {
	data, err := os.ReadFile(filepath.Join(cgroupRoot, controller, c.cgroupPath(id), file))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if k, v, _ := strings.Cut(strings.TrimSpace(line), " "); k == key {
			n, _ := strconv.ParseInt(v, 10, 64)
			return n
		}
	}
	return 0
}

// limitsSince returns the limits reached after the events in before were counted.
func (c *Client) limitsSince(ctx context.Context, id string, spec *specs.Spec, before limitEvents) ([]*LimitError, error) {
	reached := cgroupLimits(spec, c.limitEvents(id), before)
	full, err := c.diskFull(ctx, id, spec)
	if full {
		reached = append(reached, &LimitError{LimitDisk, diskLimit(spec)})
	}
	return reached, err
}

// cgroupLimits returns the limits of the cgroup that were reached between two counts.
func cgroupLimits(spec *specs.Spec, now, before limitEvents) (reached []*LimitError) {
	if now.oomKills > before.oomKills {
		reached = append(reached, &LimitError{LimitMemory, memoryLimit(spec)})
	}
	if now.noPids > before.noPids {
		reached = append(reached, &LimitError{LimitPids, pidsLimit(spec)})
	}
	return reached
}

// diskFull reports whether the writable layer of a runsc task is full.
func (c *Client) diskFull(ctx context.Context, id string, spec *specs.Spec) (bool, error) {
	limit := diskLimit(spec)
	if limit == 0 {
		return false, nil
	}
	used, err := c.diskUsage(ctx, id, spec)
	return used >= limit, err
}

// writableDir returns the directory that receives the writes to a snapshot.
func writableDir(mounts []mount.Mount) string {
	for _, m := range mounts {
		for _, o := range m.Options {
			if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
				return dir
			}
		}
	}
	if len(mounts) == 1 {
		return mounts[0].Source // a bind mount
	}
	return ""
}

func memoryLimit(s *specs.Spec) int64 {
	if s.Linux == nil || s.Linux.Resources == nil || s.Linux.Resources.Memory == nil || s.Linux.Resources.Memory.Limit == nil {
		return 0
	}
	return *s.Linux.Resources.Memory.Limit
}

// pidsLimit returns the limit on processes: under runsc not that of the cgroup (see
// cgroupPids).
func pidsLimit(s *specs.Spec) int64 {
	for _, r := range s.Process.Rlimits {
		if r.Type == "RLIMIT_NPROC" {
			return int64(r.Soft)
		}
	}
	if s.Linux == nil || s.Linux.Resources == nil || s.Linux.Resources.Pids == nil || s.Linux.Resources.Pids.Limit == nil {
		return 0
	}
	return *s.Linux.Resources.Pids.Limit
}

// annotationDisk holds AgentConfig.Disk, which is not otherwise part of a spec.
const annotationDisk = "bottle.disk"

func diskLimit(s *specs.Spec) int64 {
	n, _ := strconv.ParseInt(s.Annotations[annotationDisk], 10, 64)
	return n
}
