package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/bot-bottle/bottle/internal/unmount"
	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"

	"github.com/bot-bottle/bottle/internal/names"
)

// killTimeout bounds the wait for a killed task before a forced removal by the
// runtime.
const killTimeout = 30 * time.Second

// Remove kills the task of the container id and removes task, container, snapshot,
// cgroups and all processes. It is idempotent: absent objects are not an error. It starts
// over if containerd was unavailable meanwhile. Several processes may remove the same
// container concurrently.
//
// No launch of the bottle may be in progress or have been interrupted.
func (c *Client) Remove(ctx context.Context, id string) error { return c.removeAll(ctx, id, 0) }

// RemoveInterrupted is Remove for a bottle whose launch was interrupted by the death of
// its process. Containerd may still be creating the container: RemoveInterrupted prevents
// that, and waits until nothing more appears.
func (c *Client) RemoveInterrupted(ctx context.Context, id string) error {
	if err := c.preventCreate(id); err != nil {
		return err
	}
	return c.removeAll(ctx, id, quietTime)
}

// RemoveLaunched is Remove for a container that has the label LabelID of a launch. It
// leaves another container of that name alone. A container's record is created before, and
// removed after, everything else that belongs to it.
func (c *Client) RemoveLaunched(ctx context.Context, id, launch string) error {
	rec, err := c.ctrd.ContainerService().Get(c.withNamespace(ctx), id)
	if unavailable(err) && c.waitServing(ctx) {
		rec, err = c.ctrd.ContainerService().Get(c.withNamespace(ctx), id)
	}
	if errdefs.IsNotFound(err) || err == nil && rec.Labels[LabelID] != launch {
		return nil
	}
	if err != nil {
		return fmt.Errorf("load container %s: %w", id, err)
	}
	return c.Remove(ctx, id)
}

func (c *Client) removeAll(ctx context.Context, id string, quiet time.Duration) error {
	unlock, done, err := c.lockRemoval(ctx, id)
	if err != nil || done {
		return err
	}
	defer unlock()
	err = c.remove(c.withNamespace(ctx), id, quiet)
	for unavailable(err) && c.waitServing(ctx) {
		err = c.remove(c.withNamespace(ctx), id, quiet)
	}
	return err
}

// preventCreate makes a create fail that has not reached the runtime yet: runsc's shim
// reads a file that is removed here, and runc cannot create its state directory where
// a file is.
func (c *Client) preventCreate(id string) error {
	dir := c.Dir(names.Bottle(id))
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := os.Remove(filepath.Join(dir, runscConfig)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("prevent creation of %s: %w", id, err)
	}
	root := filepath.Join(dir, proxyDir(id), "runc")
	// A runtime that is creating its state has the directory. It is found as a process.
	f, err := os.OpenFile(root, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		return f.Close()
	}
	if errors.Is(err, os.ErrExist) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("prevent creation of %s: %w", id, err)
}

// remove removes the container first from containerd, then from the host. It keeps the
// container's record until everything else is gone.
func (c *Client) remove(ctx context.Context, id string, quiet time.Duration) error {
	socketDirs, err := c.shimSocketDirs() // while the shim is running
	if err != nil {
		return err
	}
	bundles, err := c.bundles(id)
	if err != nil {
		return err
	}
	ours, err := c.ownsContainer(ctx, id)
	if errors.Is(err, errForeign) {
		return c.RemoveSnapshot(ctx, id)
	}
	if err != nil {
		return err
	}
	if ours {
		if err := c.removeTask(ctx, id); err != nil {
			return err
		}
	}
	if err := c.endStrays(ctx, id, quiet); err != nil {
		return err
	}
	if ours && quiet > 0 {
		// What was being created meanwhile may have become a task.
		if err := c.removeTask(ctx, id); err != nil {
			return err
		}
	}
	if err := c.removeRemains(ctx, id, socketDirs, bundles); err != nil {
		return err
	}
	if ours {
		err := c.ctrd.ContainerService().Delete(ctx, id)
		if err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("delete container %s: %w", id, err)
		}
	}
	return c.RemoveSnapshot(ctx, id)
}

// removeRemains removes what a task without processes has left on the host.
func (c *Client) removeRemains(ctx context.Context, id string, socketDirs, bundles []string) error {
	if err := c.removeShimSocket(id, socketDirs); err != nil {
		return err
	}
	if err := c.removeCgroups(ctx, id); err != nil {
		return err
	}
	if err := c.removeBundles(ctx, id, bundles); err != nil {
		return err
	}
	return unmount.Below(filepath.Join(c.Dir(id), "runsc"))
}

// removeOwn removes the container of a record whose creation failed, and may still be in
// progress, but not a later one of the same ID.
func (c *Client) removeOwn(ctx context.Context, rec containers.Container) error {
	now, err := c.ctrd.ContainerService().Get(c.withNamespace(ctx), rec.ID)
	if err == nil && now.Labels[LabelID] != rec.Labels[LabelID] {
		return nil
	}
	return c.RemoveInterrupted(ctx, rec.ID)
}

// errForeign is the error of a container that is not bottle's. Whatever has its name is
// not bottle's either, except the snapshot of a launch that lost the name to it.
var errForeign = errors.New("container is not bottle's")

// ownsContainer reports whether there is a container id. If it is not bottle's the error is
// errForeign.
func (c *Client) ownsContainer(ctx context.Context, id string) (bool, error) {
	rec, err := c.ctrd.ContainerService().Get(ctx, id)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("load container %s: %w", id, err)
	}
	if !isOurs(rec) {
		return false, errForeign
	}
	return true, nil
}

// removeTask calls containerd's task service directly. The client's Task type
// queries the task's state twice first, for which runsc's shim runs a program each
// time, and an agent that slows down the host must be removable too.
func (c *Client) removeTask(ctx context.Context, id string) error {
	err := c.killAndDelete(ctx, id)
	if err == nil || errdefs.IsNotFound(err) {
		return nil
	}
	// The shim may no longer control its sandbox, or may itself be stuck.
	serr := c.endStrays(ctx, id, 0)
	// Containerd notices the end of a shim by itself, and removes its task. Until then
	// calls fail in several ways.
	for end := time.Now().Add(deadShimTimeout); ; {
		if err = c.killAndDelete(ctx, id); err == nil || errdefs.IsNotFound(err) {
			return serr
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return errors.Join(fmt.Errorf("kill task %s: %w", id, err), serr)
		}
		select {
		case <-time.After(statusInterval):
		case <-ctx.Done():
		}
	}
}

// deadShimTimeout bounds the wait for containerd to remove the task of a shim that has
// ended.
const deadShimTimeout = 10 * time.Second

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
