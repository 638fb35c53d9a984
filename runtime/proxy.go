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
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"

	"github.com/bot-bottle/bottle/internal/hosttask"
	"github.com/bot-bottle/bottle/internal/known"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/internal/segment"
)

// ErrNoEntrypoint is wrapped if a proxy image has no entrypoint.
var ErrNoEntrypoint = errors.New("image has no entrypoint")

// FrontLog is the name of the log of the container in front of a proxy.
const FrontLog = "inject.log"

func (cfg ProxyConfig) id() string {
	if cfg.Front {
		return names.Front(cfg.Name)
	}
	return names.Proxy(cfg.Name)
}

func (cfg ProxyConfig) uid() uint32 {
	if cfg.Front {
		return segment.FrontUID
	}
	return ProxyUID
}

// proxyDir returns the part of a bottle's directory that a container has; empty for the
// agent's.
func proxyDir(id string) string {
	return strings.TrimPrefix(strings.TrimPrefix(id, names.Bottle(id)), ".")
}

// PrepareProxyRootFS creates a snapshot of an unpacked proxy image and adds mount
// points for files and directories; the image may consist of a single binary. The
// task mounts it read-only. The snapshot's key is id, the ID of the proxy's
// container, and it is removed with that container. The error wraps ErrTaken if
// the key exists. After an error nothing is left behind.
func (c *Client) PrepareProxyRootFS(ctx context.Context, id, image string, files, dirs []string) (*RootFS, error) {
	ctx, cancel := c.withoutCancel(ctx)
	defer cancel()
	r, parent, err := c.imageRootFS(ctx, id, image)
	if err != nil {
		return nil, err
	}
	if len(r.conf.Entrypoint) == 0 {
		return nil, fmt.Errorf("proxy image %s: %w", image, ErrNoEntrypoint)
	}
	mounts, err := c.ctrd.SnapshotService(c.cfg.Snapshotter).Prepare(ctx, id, parent, snapshots.WithLabels(map[string]string{
		LabelName:               id,
		LabelID:                 r.id,
		"containerd.io/gc.root": time.Now().UTC().Format(time.RFC3339),
	}))
	if errdefs.IsAlreadyExists(err) {
		return nil, fmt.Errorf("create snapshot %s: %w", id, ErrTaken)
	}
	if err != nil {
		return nil, fmt.Errorf("create snapshot %s: %w", id, err)
	}
	err = c.withMount(ctx, mounts, func(dir string) error { return makeProxyMountPoints(dir, files, dirs) })
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare proxy root from %s: %w", image, err), r.Remove(ctx))
	}
	return r, nil
}

// makeProxyMountPoints works on a mounted snapshot. Its symbolic links may point
// anywhere, so all access goes through os.Root.
func makeProxyMountPoints(dir string, files, dirs []string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // nothing was written by it
	if err := makeMountPoints(root, slices.Concat(standardMountPoints, dirs)...); err != nil {
		return err
	}
	for _, f := range files {
		name := strings.TrimPrefix(f, "/")
		if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		// Mounting on a symbolic link of the image would mount on its target.
		if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := root.WriteFile(name, nil, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// WaitTask waits until the task of a container has ended. It returns immediately
// if there is no task.
func (c *Client) WaitTask(ctx context.Context, id string) error {
	task, err := c.loadTask(c.withNamespace(ctx), id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	exit, err := c.waitExit(c.withNamespace(ctx), task)
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

// Signal sends a signal to a container's PID 1. The error wraps ErrNotRunning if
// there is no running task.
func (c *Client) Signal(ctx context.Context, id string, sig syscall.Signal) error {
	r, err := c.ctrd.ContainerService().Get(c.withNamespace(ctx), id)
	if err == nil && c.signalOnHost(r, sig) {
		return nil // the shim would run a program to send it
	}
	_, err = c.ctrd.TaskService().Kill(c.withNamespace(ctx), &tasks.KillRequest{ContainerID: id, Signal: uint32(sig)})
	err = errgrpc.ToNative(err)
	if errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) {
		return fmt.Errorf("signal %s: %w", id, ErrNotRunning)
	}
	if err != nil {
		return fmt.Errorf("signal %s: %w", id, err)
	}
	return nil
}

// RecreateProxy creates a new task, not yet started, in a proxy's existing
// container, with the same root, mounts and namespaces. It removes the old task
// first, and returns the limits that it had reached. If the old task is running, it
// returns nil. The error wraps ErrNotRunning if there is no such container.
func (c *Client) RecreateProxy(ctx context.Context, id, logger, logFile string) (*Task, []*LimitError, error) {
	ctx, cancel := c.withoutCancel(ctx)
	defer cancel()
	cont, err := c.ctrd.LoadContainer(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil, nil, fmt.Errorf("load container %s: %w", id, ErrNotRunning)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("load container %s: %w", id, err)
	}
	if old, err := taskOf(ctx, cont); err == nil {
		if st, err := statusOf(ctx, old); err == nil && st.Status == containerd.Running {
			return nil, nil, nil
		}
	}
	rec, err := cont.Info(ctx, containerd.WithoutRefreshedMetadata)
	if err != nil {
		return nil, nil, fmt.Errorf("load container %s: %w", id, err)
	}
	spec, err := cont.Spec(known.WithRecord(ctx, rec))
	if err != nil {
		return nil, nil, fmt.Errorf("read spec of %s: %w", id, err)
	}
	// Its counters are removed with the task. A proxy writes nothing to a disk.
	reached := cgroupLimits(spec, c.limitEvents(id), hosttask.Events{})
	if err := c.removeTask(ctx, id); err != nil {
		return nil, reached, err
	}
	t, err := c.createTask(ctx, rec, spec, proxyIO(logger, logFile))
	if err != nil {
		return nil, reached, errors.Join(err, c.removeTask(ctx, id))
	}
	return t, reached, nil
}
