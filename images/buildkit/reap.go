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

// reap removes the containers of a killed build's RUN steps, which keep running after
// the build's process has gone. The caller holds the lock.
func reap(ctx context.Context, steps *containerd.Client) error {
	ctx = withNamespace(ctx, steps.DefaultNamespace())
	list, err := steps.Containers(ctx)
	if err != nil {
		return fmt.Errorf("list steps of a killed build: %w", err)
	}
	for _, c := range list {
		if err := removeStep(ctx, c); err != nil {
			return fmt.Errorf("remove step %s of a killed build: %w", c.ID(), err)
		}
	}
	return nil
}

func removeStep(ctx context.Context, c containerd.Container) error {
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

// removeFIFOs removes the FIFOs of a step's output. containerd's client creates them
// in a directory with a random name and is responsible for removing them.
func removeFIFOs(id string) error {
	pipes, err := filepath.Glob(filepath.Join(defaults.DefaultFIFODir, "*", id+"-*"))
	if err != nil {
		return err
	}
	for _, p := range pipes {
		if err := os.RemoveAll(filepath.Dir(p)); err != nil {
			return fmt.Errorf("remove FIFOs: %w", err)
		}
	}
	return nil
}

// dropNamespace removes the steps' namespace if it is empty.
func dropNamespace(ctx context.Context, steps *containerd.Client) error {
	err := steps.NamespaceService().Delete(ctx, steps.DefaultNamespace())
	if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
		return fmt.Errorf("remove the namespace of build steps: %w", err)
	}
	// The shim's directory for runc's state of this namespace, if it is empty.
	_ = os.Remove(filepath.Join("/run/containerd/runc", steps.DefaultNamespace()))
	return nil
}

// removeCgroups removes the parent cgroups of steps in each hierarchy. The kernel
// refuses to remove those that are in use.
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
