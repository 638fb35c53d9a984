package buildkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
)

// Labels of leases identify the state directory they belong to. Leases protect the
// cache's content and snapshots; an orphaned lease would protect them indefinitely.
const (
	labelState = "bottle.build/state" // path of the state directory
	labelID    = "bottle.build/id"    // id of the state directory
)

// leaseManager labels all leases it creates with the state directory, and lists only
// those: several state directories can use one namespace independently.
type leaseManager struct {
	leases.Manager
	dir, id string
}

func (m leaseManager) Create(ctx context.Context, opts ...leases.Opt) (leases.Lease, error) {
	return m.Manager.Create(ctx, append(opts, leases.WithLabels(map[string]string{labelState: m.dir, labelID: m.id}))...)
}

func (m leaseManager) List(ctx context.Context, filters ...string) ([]leases.Lease, error) {
	mine := fmt.Sprintf("labels.%q==%s", labelID, m.id)
	if len(filters) == 0 {
		return m.Manager.List(ctx, mine)
	}
	narrowed := make([]string, len(filters))
	for i, f := range filters {
		narrowed[i] = mine + "," + f
	}
	return m.Manager.List(ctx, narrowed...)
}

// sweep removes leases of state directories that were removed or created again at the
// same path. It returns the number of leases of this directory.
func (m leaseManager) sweep(ctx context.Context) (mine int, err error) {
	list, err := m.Manager.List(ctx)
	if err != nil {
		return 0, fmt.Errorf("list leases: %w", err)
	}
	var errs []error
	for _, l := range list {
		dir, id := l.Labels[labelState], l.Labels[labelID]
		if id == m.id {
			mine++
		}
		if dir == "" || id == m.id {
			continue
		}
		if now, err := os.ReadFile(filepath.Join(dir, "id")); err == nil && strings.TrimSpace(string(now)) == id {
			continue
		}
		if err := m.Delete(ctx, l); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("remove lease %s of an orphaned build cache: %w", l.ID, err))
		}
	}
	return mine, errors.Join(errs...)
}

// removeAll removes all leases of this state directory, including temporary ones, and
// waits for garbage collection.
func (m leaseManager) removeAll(ctx context.Context) error {
	list, err := m.List(ctx)
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	var errs []error
	for i, l := range list {
		var opts []leases.DeleteOpt
		if i == len(list)-1 {
			opts = append(opts, leases.SynchronousDelete)
		}
		if err := m.Delete(ctx, l, opts...); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("remove lease %s: %w", l.ID, err))
		}
	}
	return errors.Join(errs...)
}
