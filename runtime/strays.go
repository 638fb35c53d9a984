package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/pkg/identifiers"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/hosttask"
	"github.com/bot-bottle/bottle/internal/names"
)

// Processes of a container can outlive what containerd knows of it. Containerd deletes
// a task whose creation was interrupted, by the death of its client, while the shim and
// the runtime still create it; and a sandbox whose shim was killed keeps running. Such
// strays are identified by what only bottle's processes have: the runtime's state
// directory in the bottle's own, the shim's namespace and ID, and the cgroup.

// stray is a process of a container.
type stray struct {
	pid    int
	fd     int  // pidfd
	helper bool // a shim, logger or removal, which ends by itself when its task is gone
}

const (
	// strayInterval is the interval of searches for strays.
	strayInterval = 10 * time.Millisecond
	// helperGrace is how long a shim, logger or removal may take to end by itself. A
	// killed shim leaves its socket, a killed logger loses the proxy's last lines, and
	// containerd keeps the files of a container whose removal by the shim was killed.
	helperGrace = 5 * time.Second
	// strayTimeout bounds the wait for killed processes.
	strayTimeout = 20 * time.Second
	// quietTime is for how long nothing may appear after an interrupted launch. By
	// then containerd, which has answered calls meanwhile, has noticed that its client
	// has gone and starts nothing more for it.
	quietTime = 300 * time.Millisecond
)

// endStrays kills the strays of a container until there is none, for quiet without
// interruption. Containerd must not know a task any more.
func (c *Client) endStrays(ctx context.Context, id string, quiet time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, strayTimeout)
	defer cancel()
	start, last := time.Now(), time.Now()
	for first := true; ; first = false {
		left, err := c.strays(id)
		if err != nil {
			return err
		}
		for _, s := range left {
			if !s.helper {
				start = time.Now() // a shim ends after its task
			}
			if !s.helper || time.Since(start) > helperGrace {
				c.log.Info("kill stray process", "container", id, "pid", s.pid)
				_ = unix.PidfdSendSignal(s.fd, unix.SIGKILL, nil, 0) // it may have ended
			}
			_ = unix.Close(s.fd) // nothing was written
		}
		if len(left) > 0 {
			last = time.Now()
		} else if first && quiet == 0 || time.Since(last) > quiet {
			return nil
		}
		select {
		case <-time.After(strayInterval):
		case <-ctx.Done():
			return fmt.Errorf("end processes of %s: %d left: %w", id, len(left), ctx.Err())
		}
	}
}

// strays returns the processes of a container. The caller must close their pidfds.
func (c *Client) strays(id string) ([]stray, error) {
	inGroup, err := c.cgroupProcesses(id)
	if err != nil {
		return nil, err
	}
	pids, err := processIDs()
	if err != nil {
		return nil, err
	}
	var out []stray
	for _, pid := range pids {
		ours, helper := c.ownsProcess(pid, id)
		if !ours && !slices.Contains(inGroup, pid) {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has ended
		}
		// The ID may belong to another process by now, but from here on it cannot change.
		stillOurs, helper2 := c.ownsProcess(pid, id)
		if again, _ := c.cgroupProcesses(id); (stillOurs || slices.Contains(again, pid)) && !isZombie(pid) {
			out = append(out, stray{pid: pid, fd: fd, helper: helper && helper2})
			continue
		}
		_ = unix.Close(fd) // nothing was written
	}
	return out, nil
}

// ownsProcess reports, by a process's command line, whether it belongs to a container,
// and whether it is a helper.
func (c *Client) ownsProcess(pid int, id string) (ours, helper bool) {
	owner, helper := c.ownerOf(pid)
	return owner == id, helper
}

// ownerOf returns the ID of the container that a process belongs to, or "".
func (c *Client) ownerOf(pid int) (id string, helper bool) {
	id, helper = c.claimedOwner(pid)
	// An agent under runc can choose its command line. It must not choose a path.
	if identifiers.Validate(id) != nil {
		return "", false
	}
	return id, helper
}

// claimedOwner returns the owner that a process's command line names. The programs that
// containerd starts are in our own PID namespace, in which no agent is; gVisor's
// sandbox and gofer are not.
func (c *Client) claimedOwner(pid int) (id string, helper bool) {
	data := hosttask.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	first, _, _ := bytes.Cut(data, []byte{0})
	program := string(first[bytes.LastIndexByte(first, '/')+1:])
	// Most processes of a host have nothing to do with bottles.
	if !c.mayOwn(program, string(first), data) {
		return "", false
	}
	args := strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00")
	isShim := strings.HasPrefix(program, "containerd-shim-") ||
		(args[0] == c.cfg.Shim || program == runscCalls) && option(args, "-id") != ""
	switch {
	case isShim && inOurPIDNamespace(pid):
		if option(args, "-namespace") == c.cfg.Namespace && sameFile(option(args, "-address"), c.cfg.Address) {
			return option(args, "-id"), true
		}
	// The programs of runsc's directory gvisor-bin have one of these prefixes.
	case strings.HasPrefix(program, "runsc"), strings.HasPrefix(program, "gvisor"):
		return c.idOfRoot(option(args, "--root")), slices.Contains(args, "delete")
	case !inOurPIDNamespace(pid):
		return "", false
	case program == "runc":
		return c.idOfRoot(option(args, "--root")), slices.Contains(args, "delete")
	case len(args) == 3 && args[1] == loggerCommand && c.cfg.StateDir != "":
		name := filepath.Base(filepath.Dir(args[2]))
		if filepath.Dir(filepath.Dir(args[2])) == filepath.Clean(c.cfg.StateDir) {
			if filepath.Base(args[2]) == FrontLog {
				return names.Front(name), true
			}
			return names.Proxy(name), true
		}
	}
	return "", false
}

// mayOwn reports whether claimedOwner has to look at the arguments of a program.
func (c *Client) mayOwn(program, path string, cmdline []byte) bool {
	for _, prefix := range []string{"runsc", "gvisor", "runc", "containerd-shim-"} {
		if strings.HasPrefix(program, prefix) {
			return true
		}
	}
	return path != "" && path == c.cfg.Shim || bytes.Contains(cmdline, []byte("\x00"+loggerCommand+"\x00"))
}

// idOfRoot returns the ID of the container whose runtime's state is in root, as
// runtimeOptions chooses it.
func (c *Client) idOfRoot(root string) string {
	rel, err := filepath.Rel(c.Dir(""), root)
	if err != nil || root == "" {
		return ""
	}
	parts := strings.Split(rel, "/")
	switch {
	case len(parts) == 3 && (parts[1] == "runsc" || parts[1] == "runc") && parts[2] == c.cfg.Namespace:
		return parts[0]
	case len(parts) == 4 && (parts[1] == "proxy" || parts[1] == "front") && parts[2] == "runc" && parts[3] == c.cfg.Namespace:
		return parts[0] + "." + parts[1]
	}
	return ""
}

// option returns the value of an option, given as "--name value" or "--name=value".
func option(args []string, name string) string {
	for i, a := range args {
		if v, ok := strings.CutPrefix(a, name+"="); ok {
			return v
		}
		if a == name && i+1 < len(args) {
			return args[i+1]
		}
	}
	return ""
}

func sameFile(a, b string) bool {
	if a == b {
		return true
	}
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// ownPIDNamespace is the inode of this process's PID namespace; 0: not known.
var ownPIDNamespace = sync.OnceValue(func() uint64 { return inode("/proc/self/ns/pid") })

func inOurPIDNamespace(pid int) bool {
	own := ownPIDNamespace()
	return own != 0 && inode(fmt.Sprintf("/proc/%d/ns/pid", pid)) == own
}

// inode returns the inode of a namespace, which identifies it (namespaces(7)); 0: there is
// none.
func inode(path string) uint64 {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	return st.Ino
}

func isZombie(pid int) bool {
	_, ok := hosttask.ProcessOf(pid)
	return !ok
}

// processIDs returns the IDs of all processes.
func processIDs() ([]int, error) {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer func() { _ = proc.Close() }() // nothing was written
	entries, err := proc.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var out []int
	for _, name := range entries {
		if n, err := strconv.Atoi(name); err == nil {
			out = append(out, n)
		}
	}
	return out, nil
}

// cgroupsOf returns the existing cgroups of a container and of its logger, under
// cgroup version 1 or 2.
func (c *Client) cgroupsOf(id string) ([]string, error) {
	group := c.cgroupPath(id)
	var out []string
	for _, pattern := range []string{
		hosttask.CgroupRoot + group, hosttask.CgroupRoot + "/*" + group,
		hosttask.CgroupRoot + group + loggerSuffix, hosttask.CgroupRoot + "/*" + group + loggerSuffix,
	} {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("find cgroups of %s: %w", id, err)
		}
		out = append(out, dirs...)
	}
	return out, nil
}

// cgroupProcesses returns the processes in the cgroups of a container, without those of
// its logger.
func (c *Client) cgroupProcesses(id string) ([]int, error) {
	dirs, err := c.cgroupsOf(id)
	if err != nil {
		return nil, err
	}
	var out []int
	for _, dir := range dirs {
		if strings.HasSuffix(dir, loggerSuffix) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			continue // removed meanwhile
		}
		for line := range strings.Lines(string(data)) {
			if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid > 0 {
				out = append(out, pid)
			}
		}
	}
	return out, nil
}

// removeCgroups removes the cgroups of a container that has no process any more. The
// kernel may need a moment to empty them.
func (c *Client) removeCgroups(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, strayTimeout)
	defer cancel()
	for {
		dirs, err := c.cgroupsOf(id)
		if err != nil {
			return err
		}
		busy := false
		for _, dir := range dirs {
			err := unix.Rmdir(dir)
			if errors.Is(err, unix.EBUSY) {
				busy = true
			} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove cgroup %s: %w", dir, err)
			}
		}
		if !busy {
			return nil
		}
		select {
		case <-time.After(strayInterval):
		case <-ctx.Done():
			return fmt.Errorf("remove cgroups of %s: %w", id, ctx.Err())
		}
	}
}

// Strays returns the names of bottles that have processes or cgroups on this host, with
// a description of each, whether containerd knows them or not.
func (c *Client) Strays(ctx context.Context) (map[string][]string, error) {
	records, err := c.records(ctx)
	if err != nil {
		return nil, err
	}
	foreign := map[string]bool{}
	for _, r := range records {
		foreign[r.ID] = !isOurs(r)
	}
	processes, groups, err := c.onHost()
	if err != nil {
		return nil, err
	}
	out := map[string][]string{}
	for pid, id := range processes {
		if !foreign[id] {
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)) // it may have ended
			name := names.Bottle(id)
			out[name] = append(out[name], fmt.Sprintf("%d (%s)", pid, bytes.TrimSpace(comm)))
		}
	}
	for dir, id := range groups {
		if !foreign[id] {
			name := bottleOfCgroup(id)
			out[name] = append(out[name], dir)
		}
	}
	for _, list := range out {
		slices.Sort(list)
	}
	return out, nil
}

// StrayNames returns the names of Strays, and those of other tools' containers in the
// namespace. A launch needs no more, and it takes a third of the time.
func (c *Client) StrayNames() (map[string]bool, error) {
	processes, groups, err := c.onHost()
	if err != nil {
		return nil, err
	}
	found := map[string]bool{}
	for _, id := range groups {
		found[bottleOfCgroup(id)] = true
	}
	for _, id := range processes {
		found[names.Bottle(id)] = true
	}
	return found, nil
}

// onHost returns the container IDs of processes and of cgroups' directories.
func (c *Client) onHost() (processes map[int]string, groups map[string]string, err error) {
	pids, err := processIDs()
	if err != nil {
		return nil, nil, err
	}
	processes = map[int]string{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	workers := goruntime.GOMAXPROCS(0)
	for first := range workers {
		wg.Go(func() {
			for i := first; i < len(pids); i += workers {
				// A zombie has no command line, so no owner either.
				if id, _ := c.ownerOf(pids[i]); id != "" {
					mu.Lock()
					processes[pids[i]] = id
					mu.Unlock()
				}
			}
		})
	}
	groups, err = c.allCgroups()
	wg.Wait()
	return processes, groups, err
}

// allCgroups returns the directories of the cgroups of containers and of their loggers,
// with their IDs.
func (c *Client) allCgroups() (map[string]string, error) {
	out := map[string]string{}
	valid := map[string]bool{} // under version 1, each controller has a directory of the name
	for _, root := range []string{hosttask.CgroupRoot, hosttask.CgroupRoot + "/*"} {
		dirs, err := filepath.Glob(root + c.cgroupPath("*"))
		if err != nil {
			return nil, fmt.Errorf("find cgroups: %w", err)
		}
		for _, dir := range dirs {
			id := strings.TrimPrefix("/"+filepath.Base(dir), c.cgroupPath(""))
			ok, known := valid[id]
			if !known {
				ok = identifiers.Validate(id) == nil
				valid[id] = ok
			}
			if ok {
				out[dir] = id
			}
		}
	}
	return out, nil
}

// bottleOfCgroup returns the name of the bottle whose container or logger has a cgroup.
func bottleOfCgroup(id string) string {
	return names.Bottle(strings.TrimSuffix(id, loggerSuffix))
}
