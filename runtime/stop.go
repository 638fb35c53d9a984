package runtime

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/errdefs"
)

// Stop ends a container's task but keeps the container: its PID 1 gets SIGTERM and, if
// the task has not ended within grace, the task is killed. Without a running task it does
// nothing. killed reports whether the grace period was too short.
func (c *Client) Stop(ctx context.Context, id string, grace time.Duration) (killed bool, err error) {
	ctx = c.withNamespace(ctx)
	st, err := c.taskState(ctx, id)
	if err != nil {
		return false, err
	}
	if st.status == statusStopped || st.status == statusNone {
		return false, nil
	}
	// A paused task accepts no signal: killTask resumes it.
	if grace > 0 && c.Signal(ctx, id, syscall.SIGTERM) == nil {
		stopped, err := c.stopsWithin(ctx, id, grace)
		if stopped || err != nil {
			return false, err
		}
	}
	if err := c.killTask(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return true, fmt.Errorf("kill task %s: %w", id, err)
	}
	stopped, err := c.stopsWithin(ctx, id, killTimeout)
	if err == nil && !stopped {
		err = context.DeadlineExceeded
	}
	if err != nil {
		return true, fmt.Errorf("wait for the end of %s: %w", id, err)
	}
	return true, nil
}

// stopsWithin waits until a task has ended, at most for a time. The error is that of ctx.
func (c *Client) stopsWithin(ctx context.Context, id string, limit time.Duration) (bool, error) {
	wait, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	exit := make(chan struct{})
	go func() {
		defer close(exit)
		// Only a reason to look early: it also returns if containerd restarts.
		_, _ = c.ctrd.TaskService().Wait(wait, &tasks.WaitRequest{ContainerID: id})
	}()
	tick := time.NewTicker(statusInterval)
	defer tick.Stop()
	for {
		st, err := c.taskState(wait, id)
		if err == nil && (st.status == statusStopped || st.status == statusNone) {
			return true, nil
		}
		select {
		case <-exit:
			exit = nil
		case <-tick.C:
		case <-wait.Done():
			return false, ctx.Err()
		}
	}
}
