package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/internal/unmount"
)

// A bundle is containerd's own directory of a task. A containerd that is killed while it
// deletes a task may have forgotten the task when it starts again, and keep the bundle;
// then no other task of the name can be created.

// bundleParent is the directory of bundles in containerd's state and root directories
// (containerd core/runtime/v2, NewBundle).
const bundleParent = "io.containerd.runtime.v2.task"

// bundles returns the bundles of a container: containerd does not report its state
// directory, but the root file system is mounted in the bundle, and the shim works there.
func (c *Client) bundles(id string) ([]string, error) {
	suffix := c.bundleSuffix(id)
	var out []string
	add := func(dir string) {
		if strings.HasSuffix(dir, suffix) && !slices.Contains(out, dir) {
			out = append(out, dir)
		}
	}
	points, err := unmount.List("/")
	if err != nil {
		return nil, err
	}
	for _, p := range points {
		add(filepath.Dir(p))
	}
	pids, err := processIDs()
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		if owner, helper := c.ownerOf(pid); owner == id && helper {
			dir, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)) // it may have ended
			add(dir)
		}
	}
	return out, nil
}

// bundleSuffix is what the path of a container's bundle ends with.
func (c *Client) bundleSuffix(id string) string {
	return filepath.Join("/", bundleParent, c.cfg.Namespace, id)
}

// removeBundles removes what is left of a container's bundles, unless containerd knows
// the task.
func (c *Client) removeBundles(ctx context.Context, id string, bundles []string) error {
	for _, dir := range bundles {
		if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
			continue
		}
		st, err := c.taskState(ctx, id)
		if err != nil {
			return err
		}
		if st.status != statusNone {
			continue // containerd has noticed the end of the shim, and removes it
		}
		// On disk, next to containerd's other data.
		work, _ := os.Readlink(filepath.Join(dir, "work"))
		if err := unmount.Below(dir); err != nil {
			return err
		}
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove bundle of %s: %w", id, err)
		}
		if strings.HasSuffix(work, c.bundleSuffix(id)) {
			if err := os.RemoveAll(work); err != nil {
				return fmt.Errorf("remove bundle of %s: %w", id, err)
			}
		}
	}
	return nil
}
