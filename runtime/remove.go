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

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
)

// killTimeout bounds the wait for a killed task's end before the runtime's own
// force is used.
const killTimeout = 15 * time.Second

// Remove ends the task of the container id and removes task, container and
// snapshot. What is not there is no error; it goes on past failures and
// returns them all.
func (c *Client) Remove(ctx context.Context, id string) error {
	if err := c.remove(c.in(ctx), id); err != nil {
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
	if err := c.removeTask(ctx, cont); err != nil {
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

func (c *Client) removeTask(ctx context.Context, cont containerd.Container) error {
	task, err := cont.Task(ctx, nil)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("load task %s: %w", cont.ID(), err)
	}
	err = killAndDelete(ctx, task)
	if err == nil || errdefs.IsNotFound(err) {
		return nil
	}
	// The runtime's own force, for a sandbox that its shim no longer masters.
	if ferr := c.forceRunsc(ctx, cont.ID()); ferr != nil {
		return errors.Join(fmt.Errorf("end task %s: %w", cont.ID(), err), ferr)
	}
	if err = killAndDelete(ctx, task); err == nil || errdefs.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("end task %s: %w", cont.ID(), err)
}

func killAndDelete(ctx context.Context, task containerd.Task) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	exit, err := task.Wait(ctx)
	if err != nil {
		return err
	}
	if err := killTask(ctx, task); err != nil {
		return err
	}
	if err := awaitEnd(ctx, task, exit); err != nil {
		return fmt.Errorf("wait for the end: %w", err)
	}
	_, err = task.Delete(ctx)
	return err
}

// statusEvery is how often a killed task's status is asked for while no exit is
// told.
const statusEvery = 200 * time.Millisecond

// awaitEnd waits for the exit of a killed task. Runsc's shim never tells that of
// a task that was not started; its status alone does.
func awaitEnd(ctx context.Context, task containerd.Task, exit <-chan containerd.ExitStatus) error {
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	for {
		select {
		case <-exit:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			st, err := task.Status(ctx)
			if errdefs.IsNotFound(err) || err == nil && st.Status == containerd.Stopped {
				return nil
			}
		}
	}
}

// killTask sends SIGKILL, also to a task that is paused (which takes no signal)
// or only created.
func killTask(ctx context.Context, task containerd.Task) error {
	err := task.Kill(ctx, syscall.SIGKILL, containerd.WithKillAll)
	if err == nil || errdefs.IsNotFound(err) {
		return nil
	}
	st, serr := task.Status(ctx)
	if serr != nil {
		return errors.Join(err, serr)
	}
	switch st.Status {
	case containerd.Stopped:
		return nil
	case containerd.Paused, containerd.Pausing:
		if err := task.Resume(ctx); err != nil {
			return fmt.Errorf("resume a paused task: %w", err)
		}
		return task.Kill(ctx, syscall.SIGKILL, containerd.WithKillAll)
	}
	return err
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
