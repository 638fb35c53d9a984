package runtime

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
)

// awayTime bounds how long containerd is waited for that has gone while a bottle
// runs, as it does when its package is upgraded. Shims and what they hold go on
// meanwhile.
const awayTime = time.Minute

// away tells whether an error says that containerd did not answer at all.
func away(err error) bool {
	return err != nil && (errdefs.IsUnavailable(err) || status.Code(err) == codes.Unavailable)
}

// awayPause keeps from asking without a rest where it was a shim that did not
// answer, which looks the same: containerd needs a moment to find that it has gone.
const awayPause = 100 * time.Millisecond

// back waits until a containerd that was away answers again.
func (c *Client) back(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, awayTime)
	defer cancel()
	c.log.Info("containerd does not answer; waiting for it")
	select {
	case <-time.After(awayPause):
	case <-ctx.Done():
	}
	serving, err := c.ctrd.IsServing(ctx)
	if err != nil || !serving {
		c.log.Warn("containerd does not answer", "error", err)
		return false
	}
	return true
}

// waiter is a task or an exec.
type waiter interface {
	Wait(context.Context) (<-chan containerd.ExitStatus, error)
}

// exitOf yields the exit of a process once. It asks again after containerd was
// away: the shim knows how the process has ended meanwhile.
func (c *Client) exitOf(ctx context.Context, p waiter) (<-chan containerd.ExitStatus, error) {
	asked, err := p.Wait(ctx)
	if err != nil {
		return nil, err
	}
	out := make(chan containerd.ExitStatus, 1)
	go func() {
		st := <-asked
		for away(st.Error()) && c.back(ctx) {
			asked, err := p.Wait(ctx)
			if err != nil {
				st = *containerd.NewExitStatus(containerd.UnknownExitStatus, time.Time{}, err)
				break
			}
			st = <-asked
		}
		if err := st.Error(); err != nil {
			st = *containerd.NewExitStatus(st.ExitCode(), st.ExitTime(), errgrpc.ToNative(err))
		}
		out <- st
	}()
	return out, nil
}

// stateTime bounds how long a task's state is asked for.
const stateTime = 15 * time.Second

// patiently asks for a task's state again where the shim was too slow for
// containerd, which gives one 2 s ("io.containerd.timeout.task.state"). Runsc's
// starts a program to find the answer, and on a host under load that takes
// longer.
func patiently[T any](ctx context.Context, ask func(context.Context) (T, error)) (T, error) {
	within, cancel := context.WithTimeout(ctx, stateTime)
	defer cancel()
	for {
		v, err := ask(within)
		if err == nil || !errdefs.IsDeadlineExceeded(err) || within.Err() != nil {
			return v, err
		}
	}
}

// loadTask looks the task of a container up.
func (c *Client) loadTask(ctx context.Context, id string) (containerd.Task, error) {
	cont, err := c.ctrd.LoadContainer(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("load container %s: %w", id, err)
	}
	return taskOf(ctx, cont)
}

func taskOf(ctx context.Context, cont containerd.Container) (containerd.Task, error) {
	task, err := patiently(ctx, func(ctx context.Context) (containerd.Task, error) { return cont.Task(ctx, nil) })
	if err != nil {
		return nil, fmt.Errorf("load task %s: %w", cont.ID(), err)
	}
	return task, nil
}

func statusOf(ctx context.Context, task containerd.Task) (containerd.Status, error) {
	return patiently(ctx, task.Status)
}
