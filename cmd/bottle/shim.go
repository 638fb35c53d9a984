package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Containerd can run bottle's program as the shim of an agent under runsc: it executes
// gVisor's shim, but without the address to which that sends events. That shim panics
// if it cannot send an event while containerd is stopped (gVisor pkg/shim/v1/runsc,
// publishFailureIsFatal), and the agent is lost. Bottle uses no events: it waits for
// exits by calls and reads the memory limit's counter from the cgroup.

// runscShim is the name of gVisor's shim.
const runscShim = "containerd-shim-runsc-v1"

// isShimCall reports whether containerd has started this program as a shim: with the
// flags of containerd's own flag set (containerd pkg/shim), which bottle does not have.
func isShimCall(args []string) bool {
	return len(args) > 0 && slices.Contains([]string{"-namespace", "-info"}, args[0])
}

// execShim replaces this process by gVisor's shim. It returns only after an error.
func execShim(args []string, stderr io.Writer) int {
	path, err := findShim()
	if err == nil {
		env := slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "TTRPC_ADDRESS=") })
		err = unix.Exec(path, append([]string{path}, args...), env)
	}
	_, _ = fmt.Fprintf(stderr, "bottle: execute %s: %v\n", runscShim, err)
	return exitBottle
}

// findShim searches where containerd does: its PATH, which this process has inherited,
// and the directory of its program.
func findShim() (string, error) {
	path, err := exec.LookPath(runscShim)
	if err == nil || !errors.Is(err, exec.ErrNotFound) {
		return path, err
	}
	containerd, rerr := os.Readlink(fmt.Sprintf("/proc/%d/exe", os.Getppid()))
	if rerr != nil {
		return "", err
	}
	path = filepath.Join(filepath.Dir(containerd), runscShim)
	if _, serr := os.Stat(path); serr != nil {
		return "", err
	}
	return path, nil
}
