package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// SettleHost has the host treat what runsc's task is on it as an agent's and not
// as the shim's, whose settings it has inherited:
//
//   - An out-of-memory score of its own. As a "sandbox" it would keep the shim's
//     -999, and the kernel would kill anything else on the host before it.
//   - No core file, as the memory is the agent's. The limit is that of containerd,
//     which systemd's unit for it makes infinite. A core that is piped to a program
//     is not bounded by a limit, so that what goes into one is taken away too
//     (core(5)).
//
// Under runc the agent's spec says both.
func (t *Task) SettleHost() error {
	return t.eachHostProcess(func(pid int) error {
		if err := settle(pid); err != nil {
			return fmt.Errorf("set out-of-memory score and core limit of %s: %w", t.ID, err)
		}
		return nil
	})
}

func settle(pid int) error {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	if err := os.WriteFile(filepath.Join(dir, "oom_score_adj"), []byte(strconv.Itoa(sandboxScore)), 0); err != nil {
		return err
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "coredump_filter"), []byte("0"), 0)
}

// eachHostProcess calls change for every process that runsc's task is on the
// host, but not its shim: the sandbox, the gofer, and what descends from them,
// such as gVisor's stubs, in which the agent's programs run. A process comes
// before its children are looked for, so that those it has later take over what
// was changed. One that has ended meanwhile is no error.
func (t *Task) eachHostProcess(change func(pid int) error) error {
	next, err := t.firstProcesses()
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

// firstProcesses are the sandbox and the gofer of runsc's task.
func (t *Task) firstProcesses() ([]int, error) {
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
