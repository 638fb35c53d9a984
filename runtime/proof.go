package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/hosttask"
	"github.com/bot-bottle/bottle/internal/proven"
)

// CheckRuntime takes several times as long as the rest of a plan, because containerd starts
// the shim and that the runtime. A launch that succeeds after a check proves it, and records
// what it depends on: containerd's process, and the programs that are found by it. Until one
// of them changes, a plan needs no other check.

// Proven reports whether a check by CheckRuntime would repeat one that a launch has proved.
// It starts nothing.
func (c *Client) Proven(ctx context.Context, name string) bool {
	evidence, err := c.evidence(ctx, name)
	if err != nil || !proven.Known(c.cfg.RunDir, name, evidence) {
		return false
	}
	if name == RuntimeRunsc {
		c.shimOnce.Do(func() { c.shim = c.cfg.Shim })
	}
	return true
}

// checkedNow remembers a check that has just succeeded. The evidence is of the time before
// it: what has changed since is then not proved by anything.
func (c *Client) checkedNow(name, evidence string) {
	if evidence == "" || name == RuntimeRunsc && c.shim != c.cfg.Shim {
		return // a user should know of it at every run
	}
	c.checkedMu.Lock()
	defer c.checkedMu.Unlock()
	if c.checked == nil {
		c.checked = map[string]string{}
	}
	c.checked[name] = evidence
}

// RecordProven records the checks that this process has done. The caller has launched a
// bottle since then. The run directory must be on tmpfs.
func (c *Client) RecordProven() error {
	c.checkedMu.Lock()
	defer c.checkedMu.Unlock()
	var errs []error
	for name, evidence := range c.checked {
		errs = append(errs, proven.Write(c.cfg.RunDir, name, evidence))
	}
	c.checked = nil
	return errors.Join(errs...)
}

// errNoEvidence means that this process cannot see what containerd sees.
var errNoEvidence = errors.New("containerd is in another namespace")

// evidence describes everything that a check of a runtime depends on: containerd's process,
// and the shims and runtimes that it would start.
func (c *Client) evidence(ctx context.Context, name string) (string, error) {
	pid, err := c.serverPID(ctx)
	if err != nil {
		return "", err
	}
	process, ok := hosttask.ProcessOf(pid)
	if !ok {
		return "", errNoEvidence
	}
	programs := []string{"containerd-shim-runc-v2", "runc"}
	if name == RuntimeRunsc {
		programs = []string{"containerd-shim-runsc-v1", "runsc"}
	}
	out := []string{c.cfg.Address, fmt.Sprint(pid, process.Start)}
	if name == RuntimeRunsc {
		out = append(out, c.cfg.Shim)
	}
	dirs, err := programDirs(pid)
	if err != nil {
		return "", err
	}
	// All that could be found: containerd remembers what it has found first.
	var paths []string
	for _, program := range programs {
		for _, dir := range dirs {
			if path := filepath.Join(dir, program); isFile(path) {
				paths = append(paths, path)
			}
		}
	}
	// This process searches for the runtime, too, and passes on what it finds.
	if path, err := exec.LookPath(name); err == nil {
		paths = append(paths, path)
	}
	if name == RuntimeRunsc && c.cfg.Shim != "" {
		paths = append(paths, c.cfg.Shim)
	}
	for _, path := range paths {
		id, err := proven.File(path)
		if err != nil {
			return "", err
		}
		out = append(out, id)
	}
	return strings.Join(out, "\x00"), nil
}

// serverPID returns the ID of containerd's process. The error is errNoEvidence if that is in
// another PID namespace, where the ID means nothing.
func (c *Client) serverPID(ctx context.Context) (int, error) {
	server, err := c.ctrd.IntrospectionService().Server(ctx)
	if err != nil {
		return 0, fmt.Errorf("identify containerd: %w", err)
	}
	if own := ownPIDNamespace(); own == 0 || own != server.Pidns {
		return 0, errNoEvidence
	}
	return int(server.Pid), nil
}

// programDirs returns where a process searches for shims: its PATH and then the directory of
// its program (containerd core/runtime/v2, ShimManager.resolveRuntimePath). The error is
// errNoEvidence if this process cannot see these directories.
func programDirs(pid int) ([]string, error) {
	for _, link := range []string{"ns/mnt", "root"} {
		var own, its unix.Stat_t
		if err := errors.Join(unix.Stat("/proc/self/"+link, &own), unix.Stat(fmt.Sprintf("/proc/%d/%s", pid, link), &its)); err != nil {
			return nil, err
		}
		if own.Dev != its.Dev || own.Ino != its.Ino {
			return nil, errNoEvidence
		}
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return nil, err
	}
	var dirs []string
	for kv := range strings.SplitSeq(string(env), "\x00") {
		if path, ok := strings.CutPrefix(kv, "PATH="); ok {
			dirs = filepath.SplitList(path)
			break
		}
	}
	for _, dir := range dirs {
		if !filepath.IsAbs(dir) { // relative to containerd's working directory
			return nil, errNoEvidence
		}
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return nil, err
	}
	return append(dirs, filepath.Dir(exe)), nil
}

func isFile(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular()
}
