package runtime

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/hosttask"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/internal/runscstate"
)

// Containerd asks the shim of every task for its state, one after the other, and gVisor's
// shim runs a program to answer. A list of bottles instead reads what the runtimes have
// recorded in the bottles' directories, and checks it against the kernel's processes, as
// the runtimes themselves do. It asks containerd about the rest: tasks that have ended,
// whose end only the shim knows, and whatever is not as expected.

// hostState returns the state of a container whose first process and shim exist. ok is
// false if one of them does not, or if that cannot be decided.
func (c *Client) hostState(r containers.Container) (s taskState, ok bool) {
	s, _, ok = c.ownState(r)
	return s, ok
}

// ownState also returns the parent of the first process, which is the shim.
func (c *Client) ownState(r containers.Container) (s taskState, parent int, ok bool) {
	read := c.runscState
	if r.Runtime.Name == shimRunc {
		read = c.runcState
	}
	if s, parent, ok = read(r.ID); !ok {
		return taskState{}, 0, false
	}
	// Without its shim, containerd has no task.
	if owner, helper := c.ownerOf(parent); owner != r.ID || !helper {
		return taskState{}, 0, false
	}
	return s, parent, true
}

// recordPath returns the path of what a runtime has recorded of a container.
func (c *Client) recordPath(id, runtime string) string {
	if runtime == shimRunc {
		return filepath.Join(c.Dir(names.Bottle(id)), proxyDir(id), "runc", c.cfg.Namespace, id, "state.json")
	}
	return runscstate.Path(c.runscRoot(id), id)
}

func (c *Client) runscRoot(id string) string {
	return filepath.Join(c.Dir(id), "runsc", c.cfg.Namespace)
}

// knownTask is the key of a context in which the state of a task is known from the host.
type knownTask struct{}

// answerFromHost answers the query of a task's state in such a context: the client library
// makes it to load a task, and the shim would run a program.
func answerFromHost(ctx context.Context, method string, reply any) bool {
	state, known := ctx.Value(knownTask{}).(*task.Process)
	resp, query := reply.(*tasks.GetResponse)
	if !known || !query || !strings.HasSuffix(method, ".services.tasks.v1.Tasks/Get") {
		return false
	}
	resp.Process = state
	return true
}

// loadRunning loads a task that runs according to the host, or else according to containerd.
func (c *Client) loadRunning(ctx context.Context, cont containerd.Container) (containerd.Task, error) {
	r, err := cont.Info(ctx, containerd.WithoutRefreshedMetadata)
	if err != nil {
		return nil, fmt.Errorf("load task %s: %w", cont.ID(), err)
	}
	s, ok := c.hostState(r)
	if !ok || s.status != "running" {
		return taskOf(ctx, cont)
	}
	known := &task.Process{ContainerID: cont.ID(), ID: cont.ID(), Pid: s.pid, Status: task.Status_RUNNING}
	return taskOf(context.WithValue(ctx, knownTask{}, known), cont)
}

// signalOnHost sends a signal to the first process of a container. It reports false if
// that does not run according to the host, or is one of a sandbox, which is not on the host.
func (c *Client) signalOnHost(r containers.Container, sig syscall.Signal) bool {
	s, ok := c.hostState(r)
	if !ok || r.Runtime.Name != shimRunc || s.status != "running" {
		return false
	}
	fd, err := unix.PidfdOpen(int(s.pid), 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }() // cannot fail in a way that matters
	// The process may have ended before the descriptor was opened, and another have its ID.
	if now, ok := c.hostState(r); !ok || now != s {
		return false
	}
	return unix.PidfdSendSignal(fd, sig, nil, 0) == nil
}

// runscState reads gVisor's record of a container.
func (c *Client) runscState(id string) (s taskState, parent int, ok bool) {
	record, err := runscstate.Read(c.runscRoot(id), id)
	if err != nil {
		return taskState{}, 0, false
	}
	pid := record.Sandbox.Pid
	if !slices.Contains([]string{"created", "running", "paused"}, record.Status) {
		return taskState{}, 0, false
	}
	p, ok := hosttask.ProcessOf(pid)
	// Another process may have the number of a sandbox that has ended.
	if owner, helper := c.ownerOf(pid); !ok || owner != id || helper {
		return taskState{}, 0, false
	}
	return taskState{status: record.Status, pid: uint32(pid)}, p.Parent, true
}

// runcState reads runc's record of a container and decides as runc does (libcontainer,
// Container.currentStatus).
func (c *Client) runcState(id string) (s taskState, parent int, ok bool) {
	path := c.recordPath(id, shimRunc)
	pid, p, ok := hosttask.RuncProcess(filepath.Dir(path))
	if !ok {
		return taskState{}, 0, false
	}
	s = taskState{status: "running", pid: uint32(pid)}
	if _, err := os.Lstat(filepath.Join(filepath.Dir(path), "exec.fifo")); err == nil {
		s.status = "created"
	}
	if c.frozen(id) {
		s.status = "paused"
	}
	return s, p.Parent, true
}

// frozen reports whether a container's cgroup is frozen, under cgroup version 1 or 2.
func (c *Client) frozen(id string) bool {
	group := c.cgroupPath(id)
	var buf [32]byte // longer than any state
	version1 := filepath.Join(hosttask.CgroupRoot, "freezer", group, "freezer.state")
	if state := bytes.TrimSpace(hosttask.ReadOnce(version1, buf[:])); len(state) > 0 {
		return string(state) != "THAWED"
	}
	return string(bytes.TrimSpace(hosttask.ReadOnce(filepath.Join(hosttask.CgroupRoot, group, "cgroup.freeze"), buf[:]))) == "1"
}
