package runtime

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sync/errgroup"
)

// IDs returns the IDs of all containers in the namespace, bottle's or not, and the
// keys of bottle's snapshots, which a killed launch may have left behind. A name is
// free only if neither uses it. Containers of the known bottles are left out, because each
// that containerd sends takes time.
func (c *Client) IDs(ctx context.Context, known ...string) (map[string]bool, error) {
	all, err := c.records(ctx, except(containersOf(known...))...)
	if err != nil {
		return nil, err
	}
	out := make(map[string]bool, len(all))
	for _, r := range all {
		out[r.ID] = true
	}
	keys, err := c.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		out[k] = true
	}
	return out, nil
}

// except returns the filters that leave out containers.
func except(ids []string) []string {
	if len(ids) == 0 {
		return nil
	}
	filter := make([]string, len(ids))
	for i, id := range ids {
		filter[i] = "id!=" + strconv.Quote(id)
	}
	return []string{strings.Join(filter, ",")}
}

// isOurs reports whether a container is bottle's, and not one of another tool's with a
// similar name.
func isOurs(r containers.Container) bool { return r.Labels[LabelName] != "" }

// List returns bottle's containers, with the state of their tasks. It makes one call of
// containerd, and one for each task that does not run.
func (c *Client) List(ctx context.Context) ([]Container, error) { return c.list(ctx) }

// list is List for the containers that match one of the filters, or all without filters.
func (c *Client) list(ctx context.Context, filters ...string) ([]Container, error) {
	all, err := c.records(ctx, filters...)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(r containers.Container) bool { return !isOurs(r) })
	out := make([]Container, len(all))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(stateQueries)
	for i, r := range all {
		out[i] = Container{ID: r.ID, Role: r.Labels[LabelRole], Labels: r.Labels, Created: r.CreatedAt}
		if s, ok := c.hostState(r); ok {
			out[i].Status, out[i].PID = s.status, s.pid
			continue
		}
		g.Go(func() error {
			s, err := c.taskState(ctx, r.ID)
			out[i].Status, out[i].PID = s.status, s.pid
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return out, nil
}

// stateQueries bounds concurrent queries of tasks' states, for each of which a shim may
// start a program.
const stateQueries = 4

// Alive reports whether the agent of a bottle is running, or may be.
func (c *Client) Alive(ctx context.Context, name string) (bool, error) {
	r, err := c.ctrd.ContainerService().Get(c.withNamespace(ctx), name)
	switch {
	case errdefs.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("get container %s: %w", name, err)
	case !isOurs(r):
		return false, nil
	}
	s, err := c.taskState(ctx, name)
	return Alive(s.status), err
}

// RunningOnHost reports whether the tasks of all given containers of bottle's are running,
// from what the runtimes have recorded and the host's processes: it asks no shim. It may
// report false for a task that is running.
func (c *Client) RunningOnHost(ctx context.Context, ids ...string) (bool, error) {
	running := make([]bool, len(ids))
	g, gctx := errgroup.WithContext(ctx)
	for i, id := range ids {
		g.Go(func() error {
			r, err := c.ctrd.ContainerService().Get(c.withNamespace(gctx), id)
			if errdefs.IsNotFound(err) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("get container %s: %w", id, err)
			}
			s, ok := c.hostState(r)
			running[i] = ok && s.status == "running" && isOurs(r)
			return nil
		})
	}
	err := g.Wait()
	return err == nil && !slices.Contains(running, false), err
}

func (c *Client) records(ctx context.Context, filters ...string) ([]containers.Container, error) {
	all, err := c.ctrd.ContainerService().List(c.withNamespace(ctx), filters...)
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

func stateOf(p *task.Process) taskState {
	return taskState{status: strings.ToLower(p.Status.String()), pid: p.Pid}
}

// taskState returns the state of one task, from containerd.
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
