package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
)

// killTimeout bounds the wait for a killed task's end before the runtime's own
// force is used.
const killTimeout = 30 * time.Second

// Remove ends the task of the container id and removes task, container and
// snapshot. What is not there is no error; it goes on past failures and
// returns them all. It begins again when containerd was away meanwhile.
func (c *Client) Remove(ctx context.Context, id string) error {
	err := c.remove(c.in(ctx), id)
	for away(err) && c.back(ctx) {
		err = c.remove(c.in(ctx), id)
	}
	if err != nil {
		return err
	}
	c.removeCgroups(id)
	return c.unmountNullNetNS(id)
}

// removeCgroups removes what a create that failed has left of runsc's cgroups,
// under either version of cgroups. They are empty, or else not removed.
func (c *Client) removeCgroups(id string) {
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		left, err := filepath.Glob(root + c.cgroupPath(id))
		if err != nil { // only of a malformed pattern, and an identifier makes none
			return
		}
		for _, dir := range left {
			if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
				c.log.Warn("remove cgroup", "container", id, "error", err)
			}
		}
	}
}

// unmountNullNetNS removes the empty network namespace that runsc keeps for its
// gofers beside its state (gVisor runsc/container, "null-netns"): nobody else
// will, as the state is each bottle's own.
func (c *Client) unmountNullNetNS(id string) error {
	file := filepath.Join(c.Dir(id), "runsc", c.cfg.Namespace, "null-netns")
	err := unix.Unmount(file, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", file, err)
	}
	return nil
}

func (c *Client) remove(ctx context.Context, id string) error {
	cont, err := c.ctrd.LoadContainer(ctx, id)
	if errdefs.IsNotFound(err) {
		return errors.Join(c.removeOrphan(ctx, id), c.RemoveSnapshot(ctx, id))
	}
	if err != nil {
		return fmt.Errorf("load container %s: %w", id, err)
	}
	if err := c.removeTask(ctx, id); err != nil {
		return err
	}
	if err := c.removeOrphan(ctx, id); err != nil {
		return err
	}
	if err := cont.Delete(ctx); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	return c.RemoveSnapshot(ctx, id)
}

// removeTask speaks to containerd by the identifier alone. Its client's tasks would
// have the shim tell their state first, twice, for which runsc's starts a program
// each time; and an agent that makes a host slow must be removed all the same.
func (c *Client) removeTask(ctx context.Context, id string) error {
	err := c.killAndDelete(ctx, id)
	if err == nil || errdefs.IsNotFound(err) {
		return nil
	}
	// The runtime's own force, for a sandbox that its shim no longer masters. It
	// fails, too, where the shim was only slow and has come before it.
	ferr := c.forceRunsc(ctx, id)
	if err = c.killAndDelete(ctx, id); err == nil || errdefs.IsNotFound(err) {
		return nil
	}
	return errors.Join(fmt.Errorf("end task %s: %w", id, err), ferr)
}

func (c *Client) killAndDelete(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	exit := make(chan struct{})
	go func() {
		defer close(exit)
		// What went wrong is told by what follows.
		_, _ = c.ctrd.TaskService().Wait(ctx, &tasks.WaitRequest{ContainerID: id})
	}()
	if err := c.killTask(ctx, id); err != nil {
		return err
	}
	if err := c.awaitEnd(ctx, id, exit); err != nil {
		return fmt.Errorf("wait for the end: %w", err)
	}
	_, err := c.ctrd.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: id})
	return errgrpc.ToNative(err)
}

// statusEvery is how often a killed task's status is asked for while no exit is
// told.
const statusEvery = 200 * time.Millisecond

// awaitEnd waits for the exit of a killed task. Runsc's shim never tells that of
// a task that was not started; its status alone does.
func (c *Client) awaitEnd(ctx context.Context, id string, exit <-chan struct{}) error {
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	for {
		select {
		case <-exit:
			return ctx.Err()
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			if st, err := c.taskState(ctx, id); err == nil && (st.status == statusStopped || st.status == statusNone) {
				return nil
			}
		}
	}
}

// killTask sends SIGKILL, also to a task that is paused (which takes no signal)
// or only created.
func (c *Client) killTask(ctx context.Context, id string) error {
	err := c.kill(ctx, id)
	if err == nil || errdefs.IsNotFound(err) {
		return nil
	}
	st, serr := c.taskState(ctx, id)
	if serr != nil {
		return errors.Join(err, serr)
	}
	switch st.status {
	case statusStopped, statusNone:
		return nil
	case "paused", "pausing":
		if _, err := c.ctrd.TaskService().Resume(ctx, &tasks.ResumeTaskRequest{ContainerID: id}); err != nil {
			return fmt.Errorf("resume a paused task: %w", errgrpc.ToNative(err))
		}
		return c.kill(ctx, id)
	}
	return err
}

func (c *Client) kill(ctx context.Context, id string) error {
	_, err := c.ctrd.TaskService().Kill(ctx, &tasks.KillRequest{ContainerID: id, Signal: uint32(syscall.SIGKILL), All: true})
	return errgrpc.ToNative(err)
}

// removeOrphan destroys a sandbox that has outlived its task: containerd takes a
// task for ended when its shim was killed, and runsc's sandbox goes on.
func (c *Client) removeOrphan(ctx context.Context, id string) error {
	left, err := filepath.Glob(filepath.Join(c.Dir(id), "runsc", c.cfg.Namespace, "*.state"))
	if err != nil || len(left) == 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	return c.forceRunsc(ctx, id)
}

// forceRunsc asks runsc itself to destroy a sandbox, where the bottle's folder
// still tells its root.
func (c *Client) forceRunsc(ctx context.Context, id string) error {
	root := filepath.Join(c.Dir(id), "runsc", c.cfg.Namespace)
	if _, err := os.Stat(root); err != nil {
		return nil //nolint:nilerr // nothing that runsc could be asked about
	}
	bin, err := exec.LookPath("runsc")
	if err != nil {
		return fmt.Errorf("find runsc: %w", err)
	}
	cmd := exec.CommandContext(ctx, bin, "--root", root, "delete", "--force", id)
	cmd.Env = []string{pathEnv} // not the caller's, which may have secrets
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("runsc delete --force %s: %w: %s", id, err, out)
	}
	return nil
}
