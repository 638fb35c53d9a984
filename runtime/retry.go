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

// servingTimeout bounds the wait for a containerd that stopped while a bottle
// runs, for example for an upgrade of its package. Shims and their tasks keep
// running meanwhile.
const servingTimeout = time.Minute

// unavailable reports whether containerd did not answer at all.
func unavailable(err error) bool {
	return err != nil && (errdefs.IsUnavailable(err) || status.Code(err) == codes.Unavailable)
}

// servingPause delays the first check. A shim that has exited causes the same
// error as containerd itself, until containerd notices; without a pause the caller
// would retry in a busy loop.
const servingPause = 100 * time.Millisecond

// waitServing waits until containerd is available again.
func (c *Client) waitServing(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, servingTimeout)
	defer cancel()
	c.log.Info("containerd is unavailable, waiting")
	select {
	case <-time.After(servingPause):
	case <-ctx.Done():
	}
	serving, err := c.ctrd.IsServing(ctx)
	if err != nil || !serving {
		c.log.Warn("containerd is unavailable", "error", err)
		return false
	}
	return true
}

// waiter is a task or an exec.
type waiter interface {
	Wait(context.Context) (<-chan containerd.ExitStatus, error)
}

// waitExit returns a channel that yields the exit status of a process once. It
// waits again after a restart of containerd: the shim keeps the status of a
// process that has ended meanwhile.
func (c *Client) waitExit(ctx context.Context, p waiter) (<-chan containerd.ExitStatus, error) {
	pending, err := p.Wait(ctx)
	if err != nil {
		return nil, err
	}
	out := make(chan containerd.ExitStatus, 1)
	go func() {
		st := <-pending
		for unavailable(st.Error()) && c.waitServing(ctx) {
			pending, err := p.Wait(ctx)
			if err != nil {
				st = *containerd.NewExitStatus(containerd.UnknownExitStatus, time.Time{}, err)
				break
			}
			st = <-pending
		}
		if err := st.Error(); err != nil {
			st = *containerd.NewExitStatus(st.ExitCode(), st.ExitTime(), errgrpc.ToNative(err))
		}
		out <- st
	}()
	return out, nil
}

// stateTimeout bounds the retries of a task state query.
const stateTimeout = 15 * time.Second

// retryTimeouts repeats a query of a task's state that failed because the shim
// exceeded containerd's limit of 2 s ("io.containerd.timeout.task.state"). Runsc's
// shim runs a program to answer, which can take longer on a loaded host.
func retryTimeouts[T any](ctx context.Context, query func(context.Context) (T, error)) (T, error) {
	bounded, cancel := context.WithTimeout(ctx, stateTimeout)
	defer cancel()
	for {
		v, err := query(bounded)
		if err == nil || !errdefs.IsDeadlineExceeded(err) || bounded.Err() != nil {
			return v, err
		}
	}
}

// loadTask returns the task of a container.
func (c *Client) loadTask(ctx context.Context, id string) (containerd.Task, error) {
	cont, err := c.ctrd.LoadContainer(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("load container %s: %w", id, err)
	}
	return taskOf(ctx, cont)
}

func taskOf(ctx context.Context, cont containerd.Container) (containerd.Task, error) {
	task, err := retryTimeouts(ctx, func(ctx context.Context) (containerd.Task, error) { return cont.Task(ctx, nil) })
	if err != nil {
		return nil, fmt.Errorf("load task %s: %w", cont.ID(), err)
	}
	return task, nil
}

func statusOf(ctx context.Context, task containerd.Task) (containerd.Status, error) {
	return retryTimeouts(ctx, task.Status)
}
