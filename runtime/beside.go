package runtime

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/bot-bottle/bottle/internal/hosttask"
)

// Beside observes an agent's task during a session that PID 1 of the task runs. Neither the
// runtime nor its shim takes part in such a session.
type Beside struct {
	c      *Client
	id     string
	pid    int
	before hosttask.Events
	spec   chan specResult // gets one
}

type specResult struct {
	spec *specs.Spec
	err  error
}

// Beside returns nil if the task called name does not run according to what the runtimes
// have recorded on the host. Then containerd is to be asked.
func (c *Client) Beside(ctx context.Context, name string) *Beside {
	pid, ok := c.agentOnHost(name)
	if !ok {
		return nil
	}
	return c.beside(ctx, name, pid, c.limitEvents(name))
}

// BesideSince is Beside for a session that has begun, before which the events of the task's
// cgroup were counted. A task that does not run any more was killed during it.
func (c *Client) BesideSince(ctx context.Context, name string, before hosttask.Events) *Beside {
	pid, _ := c.agentOnHost(name)
	return c.beside(ctx, name, pid, before)
}

func (c *Client) beside(ctx context.Context, name string, pid int, before hosttask.Events) *Beside {
	b := &Beside{c: c, id: name, pid: pid, before: before, spec: make(chan specResult, 1)}
	// Needed at the end only, so nothing waits for it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.withNamespace(ctx)), killedTimeout)
	go func() {
		defer cancel()
		_, spec, err := c.loadContainer(ctx, name)
		b.spec <- specResult{spec, err}
	}()
	return b
}

// agentOnHost returns the first process of a task that runs according to the host.
func (c *Client) agentOnHost(name string) (pid int, ok bool) {
	for _, read := range []func(string) (taskState, int, bool){c.runscState, c.runcState} {
		s, parent, ok := read(name)
		if !ok || s.status != "running" {
			continue
		}
		// Without its shim, nobody notices the end of the task.
		owner, helper := c.ownerOf(parent)
		return int(s.pid), owner == name && helper
	}
	return 0, false
}

// Running reports whether the task still runs.
func (b *Beside) Running() bool {
	pid, ok := b.c.agentOnHost(b.id)
	return ok && pid == b.pid
}

// End determines, after the end of a session, whether the task was killed during it, and
// the limits that were reached. lost means that PID 1 has not reported the end.
func (b *Beside) End(lost bool, code int) (killed bool, limits []*LimitError) {
	ctx, cancel := context.WithTimeout(b.c.withNamespace(context.Background()), killedTimeout)
	defer cancel()
	if limit := b.endTime(lost, code); limit > 0 {
		stopped, err := b.c.stopsWithin(ctx, b.id, limit)
		killed = stopped && err == nil
	}
	limits, err := b.limits(ctx)
	// Without a container, it was removed.
	if err != nil && !errdefs.IsNotFound(err) && !errors.Is(err, ErrNotRunning) {
		b.c.log.Warn("check limits", "task", b.id, "error", err)
	}
	return killed, limits
}

// lostTime bounds the wait for the end of a task whose PID 1 has lost its connection.
const lostTime = 5 * time.Second

// endTime returns how long to wait for the end of the task; 0: it was not killed. A runtime first
// kills PID 1, whose connections end before the sandbox does.
func (b *Beside) endTime(lost bool, code int) time.Duration {
	switch {
	case !lost && code != execFailed+int(syscall.SIGKILL):
		return 0
	case isExiting(b.pid) || !b.Running():
		return killedTimeout
	case lost:
		return lostTime
	}
	return 0
}

func (b *Beside) limits(ctx context.Context) ([]*LimitError, error) {
	r := <-b.spec
	if r.err != nil {
		return nil, r.err
	}
	return b.c.limitsSince(ctx, b.id, r.spec, b.before)
}
