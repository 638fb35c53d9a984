package runtime

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
)

// parentOf reads a process's parent from the fourth field of /proc/PID/stat
// (proc(5)). Fields are counted after the command name, which may contain spaces
// and parentheses.
func parentOf(pid int) (int, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("get parent of process %d: %w", pid, err)
	}
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) < 2 {
		return 0, fmt.Errorf("get parent of process %d: stat line too short", pid)
	}
	return strconv.Atoi(string(fields[1]))
}

// childrenOf returns the processes whose parent is one of pids.
func childrenOf(pids ...int) ([]int, error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var out []int
	for _, d := range dirs {
		n, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		// A process may have ended meanwhile.
		if p, err := parentOf(n); err == nil && slices.Contains(pids, p) {
			out = append(out, n)
		}
	}
	return out, nil
}

// isExiting reports whether a process has exited or is exiting: the kernel releases its
// memory, and with it the command line, first. PID 1 of a PID namespace then kills all
// other processes of the namespace before it is gone (pid_namespaces(7)).
func isExiting(pid int) bool {
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err != nil || len(cmdline) == 0
}

// isShim reports whether pid is a containerd shim, by its command name, of which
// the kernel keeps 15 bytes.
func isShim(pid int) bool {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return err == nil && bytes.HasPrefix(comm, []byte("containerd-shim"))
}
