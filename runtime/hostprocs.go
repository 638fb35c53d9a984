package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// HardenHostProcesses replaces settings that the host processes of a runsc task
// have inherited from its shim:
//
//   - The out-of-memory score. As a "sandbox" the task keeps the shim's -999, and
//     the kernel would kill anything else on the host first.
//   - The core file limit, because the processes hold the agent's memory. It is
//     containerd's limit, which its systemd unit sets to infinity. The limit does
//     not apply to a core that is piped to a program, so the dump filter is cleared
//     too (core(5)).
//
// Under runc the agent's spec sets both.
func (t *Task) HardenHostProcesses() error {
	return t.eachHostProcess(func(pid int) error {
		if err := hardenProcess(pid); err != nil {
			return fmt.Errorf("set out-of-memory score and core limit of %s: %w", t.ID, err)
		}
		return nil
	})
}

func hardenProcess(pid int) error {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	if err := os.WriteFile(filepath.Join(dir, "oom_score_adj"), []byte(strconv.Itoa(sandboxScore)), 0); err != nil {
		return err
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "coredump_filter"), []byte("0"), 0)
}

// eachHostProcess calls change for every host process of a runsc task except its
// shim: the sandbox, the gofer, and their descendants, such as gVisor's stubs,
// which run the agent's programs. A process is changed before its children are
// listed, so that children created later inherit the change. A process that has
// ended meanwhile is not an error.
func (t *Task) eachHostProcess(change func(pid int) error) error {
	next, err := t.sandboxProcesses()
	if err != nil {
		return err
	}
	for len(next) > 0 {
		for _, pid := range next {
			err := change(pid)
			if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
		if next, err = childrenOf(next...); err != nil {
			return err
		}
	}
	return nil
}

// sandboxProcesses returns the sandbox and the gofer of a runsc task.
func (t *Task) sandboxProcesses() ([]int, error) {
	pid := t.PID()
	parent, err := parentOf(pid)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("task %s exited immediately after start", t.ID)
	}
	if err != nil {
		return nil, err
	}
	// The gofer is a sibling of the sandbox. If the shim has exited, the parent is
	// init, whose other children are unrelated.
	if !isShim(parent) {
		return []int{pid}, nil
	}
	return childrenOf(parent)
}
