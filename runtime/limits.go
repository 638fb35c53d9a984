package runtime

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/bot-bottle/bottle/internal/hosttask"
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
	return c.limitsSince(ctx, id, spec, hosttask.Events{})
}

// limitEvents reads a container's counters.
func (c *Client) limitEvents(id string) hosttask.Events { return hosttask.EventsOf(c.cgroupPath(id)) }

// limitsSince returns the limits reached after the events in before were counted.
func (c *Client) limitsSince(ctx context.Context, id string, spec *specs.Spec, before hosttask.Events) ([]*LimitError, error) {
	reached := cgroupLimits(spec, c.limitEvents(id), before)
	full, err := c.diskFull(ctx, id, spec)
	if full {
		reached = append(reached, &LimitError{LimitDisk, diskLimit(spec)})
	}
	return reached, err
}

// recordLimits records the limits that a session of the agent can reach, so that the end of
// one needs neither the spec nor the snapshot, which only containerd has.
func (c *Client) recordLimits(name string, spec *specs.Spec, r *RootFS) error {
	var l hosttask.Limits
	if isRunsc(spec) {
		l = hosttask.Limits{Disk: diskLimit(spec), DiskFile: filepath.Join(r.layer, filestore+name)}
	}
	if err := l.Record(c.Dir(name)); err != nil {
		return fmt.Errorf("record the limits of %s: %w", name, err)
	}
	return nil
}

// cgroupLimits returns the limits of the cgroup that were reached between two counts.
func cgroupLimits(spec *specs.Spec, now, before hosttask.Events) (reached []*LimitError) {
	if now.OOMKills > before.OOMKills {
		reached = append(reached, &LimitError{LimitMemory, memoryLimit(spec)})
	}
	if now.NoPids > before.NoPids {
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
