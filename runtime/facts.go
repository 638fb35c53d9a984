package runtime

import (
	"context"
	"fmt"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Facts are what a container's spec says about an agent. A spec contains no secrets.
type Facts struct {
	UID      uint32   `json:"uid"`
	GID      uint32   `json:"gid"`
	Hostname string   `json:"hostname"`
	Env      []string `json:"env"` // NAME=VALUE
	Mounts   []string `json:"mounts"`
	Limits   Limits   `json:"limits"`
}

// Limits are those of an agent; 0 means none.
type Limits struct {
	Memory int64   `json:"memory"` // bytes
	CPUs   float64 `json:"cpus"`
	Pids   int64   `json:"pids"`
	Disk   int64   `json:"disk"` // bytes
}

// Facts reads the spec of a container. The error wraps ErrNotRunning if there is no such
// container.
func (c *Client) Facts(ctx context.Context, id string) (Facts, error) {
	ctx = c.withNamespace(ctx)
	cont, err := c.ctrd.LoadContainer(ctx, id)
	if err != nil {
		return Facts{}, fmt.Errorf("load container %s: %w", id, notRunning(err))
	}
	s, err := cont.Spec(ctx)
	if err != nil {
		return Facts{}, fmt.Errorf("read spec of %s: %w", id, err)
	}
	f := Facts{
		UID: s.Process.User.UID, GID: s.Process.User.GID, Hostname: s.Hostname, Env: s.Process.Env, Mounts: []string{},
		Limits: limitsOf(s),
	}
	for _, m := range s.Mounts {
		if m.Type == "bind" {
			f.Mounts = append(f.Mounts, fmt.Sprintf("%s:%s:%s", m.Source, m.Destination, strings.Join(m.Options, ",")))
		}
	}
	return f, nil
}

// cpuLimit returns the number of processors that a container may use; 0: no limit.
func cpuLimit(s *specs.Spec) float64 {
	if s.Linux == nil || s.Linux.Resources == nil || s.Linux.Resources.CPU == nil {
		return 0
	}
	cpu := s.Linux.Resources.CPU
	if cpu.Quota == nil || cpu.Period == nil || *cpu.Period == 0 {
		return 0
	}
	return float64(*cpu.Quota) / float64(*cpu.Period)
}

// PID returns the process ID of a container's running task on the host; 0 without one.
func (c *Client) PID(ctx context.Context, id string) uint32 {
	st, err := c.taskState(ctx, id)
	if err != nil || st.status == statusStopped {
		return 0
	}
	return st.pid
}
