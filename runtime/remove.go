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
	return c.unmountNullNetNS(id)
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
		return c.RemoveSnapshot(ctx, id)
	}
	if err != nil {
		return fmt.Errorf("load container %s: %w", id, err)
	}
	if err := c.removeTask(ctx, cont); err != nil {
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
	st, err := task.Status(ctx)
	if err != nil {
		return err
	}
	// A task that never ran has no end that anybody is told of (runsc's shim
	// keeps such a wait for ever): its state is what can be asked.
	if st.Status == containerd.Created {
		if err := killTask(ctx, task); err != nil {
			return err
		}
		if err := awaitStopped(ctx, task); err != nil {
			return err
		}
	} else if st.Status != containerd.Stopped {
		if err := killAndWait(ctx, task); err != nil {
			return err
		}
	}
	_, err = task.Delete(ctx)
	return err
}

func killAndWait(ctx context.Context, task containerd.Task) error {
	exit, err := task.Wait(ctx)
	if err != nil {
		return err
	}
	if err := killTask(ctx, task); err != nil {
		return err
	}
	select {
	case <-exit:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the end: %w", ctx.Err())
	}
}

func awaitStopped(ctx context.Context, task containerd.Task) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		st, err := task.Status(ctx)
		if err != nil || st.Status == containerd.Stopped {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for the end: %w", ctx.Err())
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
	out, err := exec.CommandContext(ctx, bin, "--root", root, "delete", "--force", id).CombinedOutput()
	if err != nil {
		return fmt.Errorf("runsc delete --force %s: %w: %s", id, err, out)
	}
	return nil
}
