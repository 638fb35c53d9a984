package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
)

// ErrNoEntrypoint is wrapped when a proxy's image names no program.
var ErrNoEntrypoint = errors.New("the image has no entry point")

// PrepareProxyRootFS makes a snapshot over a proxy's image, unpacked already, in
// which there are places to mount files and folders on; the image may be one
// program and nothing else. The task has it read-only. The snapshot is called
// id, as the proxy's container, and goes with it; the error wraps ErrTaken when
// it is there, and after an error nothing is left.
func (c *Client) PrepareProxyRootFS(ctx context.Context, id, image string, files, folders []string) (*RootFS, error) {
	ctx, cancel := whole(c.in(ctx))
	defer cancel()
	r, parent, err := c.imageRootFS(ctx, id, image)
	if err != nil {
		return nil, err
	}
	if len(r.conf.Entrypoint) == 0 {
		return nil, fmt.Errorf("proxy's image %s: %w", image, ErrNoEntrypoint)
	}
	mounts, err := c.ctrd.SnapshotService(c.cfg.Snapshotter).Prepare(ctx, id, parent, snapshots.WithLabels(map[string]string{
		LabelName:               id,
		"containerd.io/gc.root": time.Now().UTC().Format(time.RFC3339),
	}))
	if errdefs.IsAlreadyExists(err) {
		return nil, fmt.Errorf("make snapshot %s: %w", id, ErrTaken)
	}
	if err != nil {
		return nil, fmt.Errorf("make snapshot %s: %w", id, err)
	}
	err = within(ctx, mount.WithTempMount, mounts, func(dir string) error { return proxyPlaces(dir, files, folders) })
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare the proxy's root from %s: %w", image, err), c.RemoveSnapshot(ctx, id))
	}
	return r, nil
}

// proxyPlaces works on a mounted snapshot, whose symbolic links may point
// anywhere: os.Root keeps within it.
func proxyPlaces(dir string, files, folders []string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // nothing was written by it
	if err := mountPoints(root, slices.Concat(standardPoints, folders)...); err != nil {
		return err
	}
	for _, f := range files {
		name := strings.TrimPrefix(f, "/")
		if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		// A link of the image's would be mounted on where it points to.
		if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := root.WriteFile(name, nil, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// WaitTask returns when the task of a container has ended, or is not there; an
// error is that this cannot be told.
func (c *Client) WaitTask(ctx context.Context, id string) error {
	task, err := c.loadTask(c.in(ctx), id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	exit, err := c.exitOf(c.in(ctx), task)
	if err != nil {
		return fmt.Errorf("wait for task %s: %w", id, err)
	}
	select {
	case st := <-exit:
		if st.Error() != nil && !errdefs.IsNotFound(st.Error()) {
			return fmt.Errorf("wait for task %s: %w", id, st.Error())
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Signal sends a signal to the first process of a container. The error wraps
// ErrNotRunning where there is none.
func (c *Client) Signal(ctx context.Context, id string, sig syscall.Signal) error {
	_, err := c.ctrd.TaskService().Kill(c.in(ctx), &tasks.KillRequest{ContainerID: id, Signal: uint32(sig)})
	err = errgrpc.ToNative(err)
	if errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) {
		return fmt.Errorf("signal %s: %w", id, ErrNotRunning)
	}
	if err != nil {
		return fmt.Errorf("signal %s: %w", id, err)
	}
	return nil
}

// RecreateProxy makes the task of a proxy's container anew, not yet started:
// with the root, mounts and namespaces that it had. What is left of the old task
// is removed. It gives nil if the old task runs. The error wraps ErrNotRunning
// when there is no such container.
func (c *Client) RecreateProxy(ctx context.Context, id, logger, logFile string) (*Task, error) {
	ctx, cancel := whole(c.in(ctx))
	defer cancel()
	cont, err := c.ctrd.LoadContainer(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("load container %s: %w", id, ErrNotRunning)
	}
	if err != nil {
		return nil, fmt.Errorf("load container %s: %w", id, err)
	}
	if old, err := taskOf(ctx, cont); err == nil {
		if st, err := statusOf(ctx, old); err == nil && st.Status == containerd.Running {
			return nil, nil
		}
	}
	if err := c.removeTask(ctx, id); err != nil {
		return nil, err
	}
	return c.createTask(ctx, containers.Container{ID: id}, proxyIO(logger, logFile))
}
