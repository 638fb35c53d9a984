package runtime

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
)

// IDs returns the IDs of all containers in the namespace, bottle's or not, and the
// keys of bottle's snapshots, which a killed launch may have left behind. A name is
// free only if neither uses it.
func (c *Client) IDs(ctx context.Context) (map[string]bool, error) {
	all, err := c.records(ctx)
	if err != nil {
		return nil, err
	}
	ids := make(map[string]bool, len(all))
	for _, r := range all {
		ids[r.ID] = true
	}
	keys, err := c.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		ids[k] = true
	}
	return ids, nil
}

// isOurs reports whether a container is bottle's, and not one of another tool's with a
// similar name.
func isOurs(r containers.Container) bool { return r.Labels[LabelName] != "" }

// List returns bottle's containers, with the state of their tasks.
func (c *Client) List(ctx context.Context) ([]Container, error) {
	all, err := c.records(ctx)
	if err != nil {
		return nil, err
	}
	states, err := c.taskStates(ctx)
	if err != nil {
		return nil, err
	}
	var out []Container
	for _, r := range all {
		if !isOurs(r) {
			continue
		}
		s, ok := states[r.ID]
		if !ok {
			if s, err = c.taskState(ctx, r.ID); err != nil {
				return nil, err
			}
		}
		out = append(out, Container{
			ID: r.ID, Role: r.Labels[LabelRole], Labels: r.Labels, Created: r.CreatedAt, Status: s.status, PID: s.pid,
		})
	}
	return out, nil
}

// Alive reports whether the agent of a bottle is running, or may be.
func (c *Client) Alive(ctx context.Context, name string) (bool, error) {
	list, err := c.List(ctx)
	return slices.ContainsFunc(list, func(c Container) bool { return c.ID == name && c.Alive() }), err
}

func (c *Client) records(ctx context.Context) ([]containers.Container, error) {
	all, err := c.ctrd.ContainerService().List(c.withNamespace(ctx))
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	return all, nil
}

// Task states that a removal checks for.
const (
	statusStopped = "stopped"
	statusNone    = "none" // no task
)

type taskState struct {
	status string
	pid    uint32
}

// taskStates returns the states of all tasks with a single call.
func (c *Client) taskStates(ctx context.Context) (map[string]taskState, error) {
	resp, err := c.ctrd.TaskService().List(c.withNamespace(ctx), &tasks.ListTasksRequest{})
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	out := make(map[string]taskState, len(resp.Tasks))
	for _, t := range resp.Tasks {
		out[t.ID] = stateOf(t)
	}
	return out, nil
}

func stateOf(p *task.Process) taskState {
	return taskState{status: strings.ToLower(p.Status.String()), pid: p.Pid}
}

// taskState returns the state of one task. Containerd omits a task from its list
// if there is none, but also if the shim was slow to report its state.
func (c *Client) taskState(ctx context.Context, id string) (taskState, error) {
	resp, err := retryTimeouts(c.withNamespace(ctx), func(ctx context.Context) (*tasks.GetResponse, error) {
		resp, err := c.ctrd.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
		return resp, errgrpc.ToNative(err)
	})
	switch {
	case errdefs.IsNotFound(err):
		return taskState{status: statusNone}, nil
	case errdefs.IsDeadlineExceeded(err) && ctx.Err() == nil:
		return taskState{status: "unknown"}, nil
	case err != nil:
		return taskState{}, fmt.Errorf("get task %s: %w", id, err)
	}
	return stateOf(resp.Process), nil
}

// Snapshots returns the keys of bottle's writable snapshots, with or without a
// container.
func (c *Client) Snapshots(ctx context.Context) ([]string, error) {
	var keys []string
	err := c.ctrd.SnapshotService(c.cfg.Snapshotter).Walk(c.withNamespace(ctx), func(_ context.Context, i snapshots.Info) error {
		if i.Kind == snapshots.KindActive && i.Labels[LabelName] != "" {
			keys = append(keys, i.Name)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	return keys, nil
}
