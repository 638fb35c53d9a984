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
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
)

// killTimeout bounds the wait for a killed task before a forced removal by the
// runtime.
const killTimeout = 30 * time.Second

// Remove kills the task of the container id and removes task, container and
// snapshot. It is idempotent: absent objects are not an error. It continues after
// failures and returns all of them. It starts over if containerd was unavailable
// meanwhile. Several processes may remove the same container concurrently.
func (c *Client) Remove(ctx context.Context, id string) error {
	unlock, done, err := c.lockRemoval(ctx, id)
	if err != nil || done {
		return err
	}
	defer unlock()
	err = c.remove(c.withNamespace(ctx), id)
	for unavailable(err) && c.waitServing(ctx) {
		err = c.remove(c.withNamespace(ctx), id)
	}
	if err != nil {
		return err
	}
	c.removeCgroups(id)
	return c.unmountNullNetNS(id)
}

// removeOwn removes the container of a record, but not a later one of the same ID.
func (c *Client) removeOwn(ctx context.Context, rec containers.Container) error {
	now, err := c.ctrd.ContainerService().Get(c.withNamespace(ctx), rec.ID)
	if err == nil && now.Labels[LabelID] != rec.Labels[LabelID] {
		return nil
	}
	return c.Remove(ctx, rec.ID)
}

// removeCgroups removes the cgroup of a proxy's logger and the runsc cgroups left by a
// failed create, under cgroup version 1 or 2. Only empty cgroups can be removed.
func (c *Client) removeCgroups(id string) {
	group := c.cgroupPath(id)
	for _, pattern := range []string{
		cgroupRoot + group, cgroupRoot + "/*" + group,
		cgroupRoot + group + loggerSuffix, cgroupRoot + "/*" + group + loggerSuffix,
	} {
		left, err := filepath.Glob(pattern)
		if err != nil { // malformed pattern; an ID cannot cause one
			return
		}
		for _, dir := range left {
			if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
				c.log.Warn("remove cgroup", "container", id, "error", err)
			}
		}
	}
}

// unmountNullNetNS unmounts the empty network namespace that runsc keeps for its
// gofers in its state directory (gVisor runsc/container, "null-netns"). runsc
// itself never does, because it expects the state directory to be shared.
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

// removeTask calls containerd's task service directly. The client's Task type
// queries the task's state twice first, for which runsc's shim runs a program each
// time, and an agent that slows down the host must be removable too.
func (c *Client) removeTask(ctx context.Context, id string) error {
	err := c.killAndDelete(ctx, id)
	if err == nil || errdefs.IsNotFound(err) {
		return nil
	}
	// Force the removal of a sandbox that its shim no longer controls. This fails
	// too if the shim was only slow and has removed the sandbox meanwhile.
	ferr := c.forceRunsc(ctx, id)
	if err = c.killAndDelete(ctx, id); err == nil || errdefs.IsNotFound(err) {
		return nil
	}
	return errors.Join(fmt.Errorf("kill task %s: %w", id, err), ferr)
}

func (c *Client) killAndDelete(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	exit := make(chan struct{})
	go func() {
		defer close(exit)
		// The calls below report any error.
		_, _ = c.ctrd.TaskService().Wait(ctx, &tasks.WaitRequest{ContainerID: id})
	}()
	if err := c.killTask(ctx, id); err != nil {
		return err
	}
	if err := c.waitStopped(ctx, id, exit); err != nil {
		return fmt.Errorf("wait for exit: %w", err)
	}
	_, err := c.ctrd.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: id})
	return errgrpc.ToNative(err)
}

// statusInterval is the interval of status queries while a killed task has not
// reported its exit.
const statusInterval = 200 * time.Millisecond

// waitStopped waits for the exit of a killed task. Runsc's shim never reports the
// exit of a task that was not started; only its status shows it.
func (c *Client) waitStopped(ctx context.Context, id string, exit <-chan struct{}) error {
	tick := time.NewTicker(statusInterval)
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

// killTask sends SIGKILL to a task that is running, created or paused; a paused
// task accepts no signal and is resumed first.
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
			return fmt.Errorf("resume paused task: %w", errgrpc.ToNative(err))
		}
		return c.kill(ctx, id)
	}
	return err
}

func (c *Client) kill(ctx context.Context, id string) error {
	_, err := c.ctrd.TaskService().Kill(ctx, &tasks.KillRequest{ContainerID: id, Signal: uint32(syscall.SIGKILL), All: true})
	return errgrpc.ToNative(err)
}

// removeOrphan destroys a sandbox that has outlived its task: containerd considers
// a task ended when its shim was killed, but runsc's sandbox keeps running.
func (c *Client) removeOrphan(ctx context.Context, id string) error {
	left, err := filepath.Glob(filepath.Join(c.Dir(id), "runsc", c.cfg.Namespace, "*.state"))
	if err != nil || len(left) == 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	return c.forceRunsc(ctx, id)
}

// forceRunsc has runsc itself destroy a sandbox, if the bottle's directory still
// has runsc's state.
func (c *Client) forceRunsc(ctx context.Context, id string) error {
	root := filepath.Join(c.Dir(id), "runsc", c.cfg.Namespace)
	if _, err := os.Stat(root); err != nil {
		return nil //nolint:nilerr // no state, so there is no sandbox
	}
	bin, err := exec.LookPath("runsc")
	if err != nil {
		return fmt.Errorf("find runsc: %w", err)
	}
	cmd := exec.CommandContext(ctx, bin, "--root", root, "delete", "--force", id)
	cmd.Env = []string{pathEnv} // the caller's environment may contain secrets
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("runsc delete --force %s: %w: %s", id, err, out)
	}
	return nil
}
