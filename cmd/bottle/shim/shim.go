// Package shim executes gVisor's shim in place of bottle's program.
//
// Containerd can run bottle's program as the shim of an agent under runsc: it executes
// gVisor's shim, but without the address to which that sends events. That shim panics
// if it cannot send an event while containerd is stopped (gVisor pkg/shim/v1/runsc,
// publishFailureIsFatal), and the agent is lost. Bottle uses no events: it waits for
// exits by calls and reads the memory limit's counter from the cgroup.
//
// Containerd starts it several times in the life of a bottle. It needs nothing of what the
// rest of the program initialises, which takes longer than the shim itself, so that this
// package acts when it is initialised. It may therefore import only small packages.
package shim

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

func init() {
	args := os.Args[1:]
	// A user of sudo may not make such a call, unless containerd itself was started with
	// sudo: main checks that. After an error, main tries again and reports it.
	if _, sudo := os.LookupEnv("SUDO_UID"); sudo || !IsCall(args) {
		return
	}
	if rootfs, ok := noneLeft(args); ok && reportDeleted(rootfs, os.Stdout) == nil {
		os.Exit(0)
	}
	_ = Exec(args)
}

// program is the name of gVisor's shim.
const program = "containerd-shim-runsc-v1"

// IsCall reports whether containerd has started this program as a shim: with the
// flags of containerd's own flag set (containerd pkg/shim), which bottle does not have.
func IsCall(args []string) bool {
	return len(args) > 0 && slices.Contains([]string{"-namespace", "-info"}, args[0])
}

// Exec replaces this process by gVisor's shim. It returns only after an error.
func Exec(args []string) error {
	path, err := find()
	if err == nil {
		env := slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "TTRPC_ADDRESS=") })
		err = syscall.Exec(path, append([]string{path}, args...), env)
	}
	return fmt.Errorf("execute %s: %w", program, err)
}

// find searches where containerd does: its PATH, which this process has inherited,
// and the directory of its program.
func find() (string, error) {
	path, err := exec.LookPath(program)
	if err == nil || !errors.Is(err, exec.ErrNotFound) {
		return path, err
	}
	containerd, rerr := os.Readlink(fmt.Sprintf("/proc/%d/exe", os.Getppid()))
	if rerr != nil {
		return "", err
	}
	path = filepath.Join(filepath.Dir(containerd), program)
	if _, serr := os.Stat(path); serr != nil {
		return "", err
	}
	return path, nil
}
