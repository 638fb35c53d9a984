package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/bot-bottle/bottle/internal/hint"
)

// Errors of CheckRuntime.
var (
	ErrNoRunsc = errors.New("runsc is not in PATH")
	ErrNoRunc  = errors.New("runc is not in PATH")
	ErrNoShim  = errors.New("containerd cannot run the shim")

	ErrUnknownRuntime = errors.New("unknown runtime")
)

// CheckRuntime reports whether an agent can run under the runtime: whether the
// runtime's binary is installed, and whether containerd itself finds the shim
// (it searches its own PATH, not ours) and gets an answer from it. dir is a
// scratch directory.
func (c *Client) CheckRuntime(ctx context.Context, name, dir string) error {
	if err := checkRuntimeName(name); err != nil {
		return err
	}
	evidence, _ := c.evidence(ctx, name) // without it, nothing is recorded
	if err := c.checkRuntime(ctx, name, dir); err != nil {
		return err
	}
	c.checkedNow(name, evidence)
	return nil
}

func (c *Client) checkRuntime(ctx context.Context, name, dir string) error {
	if name == RuntimeRunc {
		if _, err := exec.LookPath("runc"); err != nil {
			return ErrNoRunc
		}
		return c.checkShim(ctx, shimRunc, nil)
	}
	runsc, err := exec.LookPath("runsc")
	if err != nil {
		return ErrNoRunsc
	}
	shim, opts, err := c.runtimeOptions(ctx, name, dir, runscOptions{program: runsc})
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(filepath.Join(dir, runscConfig)) }()
	if shim == c.cfg.Shim {
		return nil // runscShim has checked it
	}
	return c.checkShim(ctx, shim, opts)
}

// runscShim returns containerd's name of the runtime for agents under runsc: the path of
// Config.Shim if containerd can run it.
func (c *Client) runscShim(ctx context.Context, opts any) string {
	c.shimOnce.Do(func() {
		c.shim = shimRunsc
		if c.cfg.Shim == "" {
			c.shimErr = errors.New("no program is configured")
			return
		}
		if c.shimErr = c.checkShim(ctx, c.cfg.Shim, opts); c.shimErr == nil {
			c.shim = c.cfg.Shim
		}
	})
	return c.shim
}

// CheckShim reports, after CheckRuntime, why agents under runsc do not survive that
// containerd stops: containerd cannot run Config.Shim. Otherwise it returns nil.
func (c *Client) CheckShim() error { return c.shimErr }

func checkRuntimeName(name string) error {
	if name != RuntimeRunsc && name != RuntimeRunc {
		return fmt.Errorf("%w: %q", ErrUnknownRuntime, name)
	}
	return nil
}

// shimTimeout bounds a shim's answer to an information request: containerd starts
// the shim for it, and the shim starts the runtime.
const shimTimeout = 30 * time.Second

func (c *Client) checkShim(ctx context.Context, shim string, opts any) error {
	ctx, cancel := context.WithTimeout(c.withNamespace(ctx), shimTimeout)
	defer cancel()
	if _, err := c.ctrd.RuntimeInfo(ctx, shim, opts); err != nil {
		return fmt.Errorf("%w %s: %w", ErrNoShim, shim, err)
	}
	return nil
}

// Hint adds a hint to an error about a missing runtime.
func Hint(err error) error {
	switch {
	case errors.Is(err, ErrNoRunsc):
		return &hint.Error{Err: err, Hint: "install gVisor with bottle setup, or unpack a release of it into /usr/local/bin (https://gvisor.dev/docs/user_guide/install/), or use --runtime runc, which gives up gVisor's isolation"}
	case errors.Is(err, ErrNoRunc):
		return &hint.Error{Err: err, Hint: "install runc (on Debian: apt install runc)"}
	case errors.Is(err, ErrNoShim):
		return &hint.Error{Err: err, Hint: "install the shim where containerd's own PATH finds it (usually /usr/local/bin)"}
	}
	return err
}
