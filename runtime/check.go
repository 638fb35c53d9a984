package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
)

// Errors of CheckRuntime.
var (
	ErrNoRunsc = errors.New("runsc is not in PATH")
	ErrNoRunc  = errors.New("runc is not in PATH")
	ErrNoShim  = errors.New("containerd does not find or cannot run the shim")

	ErrUnknownRuntime = errors.New("no such runtime")
)

// CheckRuntime tells whether an agent can run under the runtime: whether the
// runtime's program is there, and whether containerd itself finds its shim
// (which it looks for in its own PATH, not in ours) and gets an answer from it.
// dir is a scratch folder.
func (c *Client) CheckRuntime(ctx context.Context, name, dir string) error {
	if err := known(name); err != nil {
		return err
	}
	if name == RuntimeRunc {
		if _, err := exec.LookPath("runc"); err != nil {
			return ErrNoRunc
		}
		return c.askShim(ctx, shimRunc, nil)
	}
	if _, err := exec.LookPath("runsc"); err != nil {
		return ErrNoRunsc
	}
	conf := filepath.Join(dir, "runsc.toml")
	if err := writeRunscConfig(conf, filepath.Join(dir, "runsc"), 0); err != nil {
		return err
	}
	defer func() { _ = os.Remove(conf) }()
	return c.askShim(ctx, shimRunsc, &runtimeoptions.Options{
		TypeUrl: "io.containerd.runsc.v1.options", ConfigPath: conf,
	})
}

func known(name string) error {
	if name != RuntimeRunsc && name != RuntimeRunc {
		return fmt.Errorf("%w: %q", ErrUnknownRuntime, name)
	}
	return nil
}

// shimTime bounds how long a shim may take to tell what it is: containerd starts
// it for that, and it its runtime.
const shimTime = 30 * time.Second

func (c *Client) askShim(ctx context.Context, shim string, opts any) error {
	ctx, cancel := context.WithTimeout(c.in(ctx), shimTime)
	defer cancel()
	if _, err := c.ctrd.RuntimeInfo(ctx, shim, opts); err != nil {
		return fmt.Errorf("%w %s: %w", ErrNoShim, shim, err)
	}
	return nil
}
