package buildkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func withNamespace(ctx context.Context, ns string) context.Context {
	return namespaces.WithNamespace(ctx, ns)
}

// reap ends the RUN steps of a build that was killed: their containers go on
// when the process that wanted them has gone. The caller holds the lock.
func reap(ctx context.Context, steps *containerd.Client) error {
	ctx = withNamespace(ctx, steps.DefaultNamespace())
	list, err := steps.Containers(ctx)
	if err != nil {
		return fmt.Errorf("look for steps of a killed build: %w", err)
	}
	for _, c := range list {
		if err := endStep(ctx, c); err != nil {
			return fmt.Errorf("end step %s of a killed build: %w", c.ID(), err)
		}
	}
	return nil
}

func endStep(ctx context.Context, c containerd.Container) error {
	task, err := c.Task(ctx, nil)
	if err == nil {
		_, err = task.Delete(ctx, containerd.WithProcessKill)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if err := c.Delete(ctx); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return removeFIFOs(c.ID())
}

// removeFIFOs removes the pipes of a step's output, which are its client's to
// remove: containerd's client makes a folder of a random name for them.
func removeFIFOs(id string) error {
	pipes, err := filepath.Glob(filepath.Join(defaults.DefaultFIFODir, "*", id+"-*"))
	if err != nil {
		return err
	}
	for _, p := range pipes {
		if err := os.RemoveAll(filepath.Dir(p)); err != nil {
			return fmt.Errorf("remove its pipes: %w", err)
		}
	}
	return nil
}

// dropNamespace removes the steps' namespace, which is empty but for what must
// be kept: then it stays.
func dropNamespace(ctx context.Context, steps *containerd.Client) error {
	err := steps.NamespaceService().Delete(ctx, steps.DefaultNamespace())
	if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
		return fmt.Errorf("remove the namespace of build steps: %w", err)
	}
	// The shim's folder for runc's state of this namespace; empty, or it stays.
	_ = os.Remove(filepath.Join("/run/containerd/runc", steps.DefaultNamespace()))
	return nil
}

// removeCgroups removes the folders that were made above those of steps, in each
// hierarchy. Empty ones only: the kernel refuses others.
func removeCgroups(parent string) error {
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		dirs, err := filepath.Glob(filepath.Join(pattern, parent))
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			for _, d := range []string{filepath.Join(dir, "buildkit"), dir} {
				if err := os.Remove(d); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EBUSY) {
					return fmt.Errorf("remove the cgroup of build steps: %w", err)
				}
			}
		}
	}
	return nil
}
