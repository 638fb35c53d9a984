package runtime

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
)

// parentOf reads a process's parent from /proc/PID/stat (proc(5)): the fourth
// field, counted from behind the command's name, which may hold anything.
func parentOf(pid int) (int, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("find the parent of process %d: %w", pid, err)
	}
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) < 2 {
		return 0, fmt.Errorf("find the parent of process %d: stat line too short", pid)
	}
	return strconv.Atoi(string(fields[1]))
}

// childrenOf lists the processes whose parent is one of pids.
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
		// A process that ended meanwhile is nobody's child.
		if p, err := parentOf(n); err == nil && slices.Contains(pids, p) {
			out = append(out, n)
		}
	}
	return out, nil
}

// isShim tells whether pid is one of containerd's shims, by its command's name,
// of which the kernel keeps 15 bytes.
func isShim(pid int) bool {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return err == nil && bytes.HasPrefix(comm, []byte("containerd-shim"))
}
