package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// ForbidCores has the kernel write no core file of an agent's host processes,
// whose memory is the agent's. They inherit containerd's limit, which systemd's
// unit for it makes infinite. A core that is piped to a program is not bounded
// by a limit, so that what goes into one is taken away too (core(5)). Only
// runsc's tasks need it: under runc the agent's own limit holds.
func (t *Task) ForbidCores() error {
	pids, err := t.hostProcesses()
	if err != nil {
		return err
	}
	for _, p := range pids {
		err := unix.Prlimit(p, unix.RLIMIT_CORE, &unix.Rlimit{}, nil)
		if err == nil {
			err = os.WriteFile(filepath.Join("/proc", strconv.Itoa(p), "coredump_filter"), []byte("0"), 0)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("forbid core files of %s: %w", t.ID, err)
		}
	}
	return nil
}

// hostProcesses are the sandbox and the gofer of runsc's task.
func (t *Task) hostProcesses() ([]int, error) {
	pid := t.PID()
	parent, err := parentOf(pid)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s ended as soon as it was started", t.ID)
	}
	if err != nil {
		return nil, err
	}
	// The gofer is the sandbox's sister. Were the shim gone, the parent would
	// be init, whose other children are none of ours.
	if !isShim(parent) {
		return []int{pid}, nil
	}
	return childrenOf(parent)
}
