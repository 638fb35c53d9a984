// Package leakcheck compares the test host before and after a test: network
// namespaces, links, addresses, routes, nftables, sysctls, mounts, processes,
// cgroups, loop devices, files under /run and /var/lib/bottle, and containerd's containers,
// tasks, snapshots and leases. It is for tests that run as root on the test host
// (scripts/lab).
package leakcheck

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

// TB is the part of testing.TB that the check uses.
type TB interface {
	Helper()
	Name() string
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Cleanup(func())
}

// state is the set of resources on the host, each as "kind description".
type state map[string]bool

// settleTimeout bounds the wait for asynchronous cleanup: a shim exits shortly
// after its task, and containerd removes snapshots in the background.
const settleTimeout = 10 * time.Second

// Check records the state of the host, compares it again after the test and its
// other cleanup functions have finished, and reports every difference as a test
// error. Call it before anything that registers a cleanup function.
func Check(t TB) {
	t.Helper()
	before, err := snapshot()
	if err != nil {
		t.Fatalf("read the state of the host: %v", err)
	}
	checked.Store(t.Name(), true)
	t.Cleanup(func() {
		t.Helper()
		checked.Delete(t.Name())
		if diff := waitUnchanged(before, settleTimeout); diff != "" {
			t.Errorf("the test changed the host:\n%s", diff)
		}
	})
}

// checked contains the names of the tests that are being checked.
var checked sync.Map

// CheckOnce is Check for helpers of tests: it does nothing if the test, or one that it is
// a part of, is being checked. A test that is not may leave something that only a later
// test reports.
func CheckOnce(t TB) {
	t.Helper()
	for name, more := t.Name(), true; more; {
		if _, ok := checked.Load(name); ok {
			return
		}
		i := strings.LastIndex(name, "/")
		if more = i >= 0; more {
			name = name[:i]
		}
	}
	Check(t)
}

// waitUnchanged waits until the host is in state before. It returns the
// remaining difference when the timeout expires, and "" if there is none.
func waitUnchanged(before state, timeout time.Duration) string {
	deadline := time.Now().Add(timeout)
	for {
		now, err := snapshot()
		diff := ""
		if err != nil {
			diff = err.Error()
		} else {
			diff = compare(before, now)
		}
		if diff == "" || time.Now().After(deadline) {
			return diff
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// compare lists what was added and what was removed.
func compare(before, after state) string {
	var lines []string
	for k := range after {
		if !before[k] {
			lines = append(lines, "+ "+k)
		}
	}
	for k := range before {
		if !after[k] {
			lines = append(lines, "- "+k)
		}
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

// snapshot returns the current state of the host.
func snapshot() (state, error) {
	s := state{}
	for kind, list := range map[string]func() ([]string, error){
		"process": processes, "network namespace": namespaces, "mount": mounts, "cgroup": cgroups,
		"file": files, "sysctl": sysctls, "loop device": loopDevices,
		"link":      command("ip", "-o", "link"),
		"address":   command("ip", "-o", "address"),
		"route":     command("ip", "route", "show", "table", "all"),
		"nftables":  command("nft", "--stateless", "list", "ruleset"),
		"container": command("ctr", "containers", "ls", "-q"),
		"task":      command("ctr", "tasks", "ls", "-q"),
		"lease":     command("ctr", "leases", "ls", "-q"),
		"snapshot":  command("ctr", "snapshots", "ls"),
	} {
		lines, err := list()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", kind, err)
		}
		for _, l := range lines {
			s[kind+" "+l] = true
		}
	}
	return s, nil
}

// volatile matches the parts of ip's output that change on their own.
var volatile = regexp.MustCompile(`(valid_lft|preferred_lft) \d+sec|link-netns(id)? \S+`)

func command(name string, args ...string) func() ([]string, error) {
	return func() ([]string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, name, args...).Output()
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
		}
		var lines []string
		for _, l := range strings.Split(string(out), "\n") {
			l = strings.TrimSpace(volatile.ReplaceAllString(l, ""))
			// Cached multicast routes are not configuration.
			if l != "" && !strings.HasPrefix(l, "multicast ") {
				lines = append(lines, strings.Join(strings.Fields(l), " "))
			}
		}
		return lines, nil
	}
}

// processes lists the processes of this PID namespace except those related to
// the test.
func processes() ([]string, error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, d := range dirs {
		if pid, err := strconv.Atoi(d.Name()); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	var out []string
	for pid, args := range commandLines(pids) {
		switch {
		case related(pid):
		case strings.HasPrefix(args, "containerd --config "):
			out = append(out, args) // without the pid: a test may restart it
		default:
			out = append(out, fmt.Sprintf("%d %s", pid, args))
		}
	}
	return out, nil
}

// executing bounds the wait for a process that has no arguments while it executes another
// program. The processes of a gVisor sandbox that run the agent's code never have any.
const executing = time.Second

// noArguments describes a process without arguments.
const noArguments = "(no arguments)"

// commandLines returns the arguments of processes, without those that have exited and
// kernel threads. It waits for all that are executing another program together: a
// bottle has about ten processes that never have arguments.
func commandLines(pids []int) map[int]string {
	out := map[int]string{}
	for end := time.Now().Add(executing); ; time.Sleep(time.Millisecond) {
		var pending []int
		for _, pid := range pids {
			switch args := commandLine(pid); args {
			case "":
				delete(out, pid)
			case noArguments:
				pending = append(pending, pid)
				out[pid] = args
			default:
				out[pid] = args
			}
		}
		if pids = pending; len(pids) == 0 || time.Now().After(end) {
			return out
		}
	}
}

// commandLine returns the arguments of a process, and "" for a process that has
// exited and for a kernel thread, which have none. The arguments of a process are
// also empty for a moment while it executes another program: only the flags and the
// state in proc_pid_stat(5) distinguish these cases.
func commandLine(pid int) string {
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	if len(args) > 0 {
		return strings.TrimSpace(string(bytes.ReplaceAll(args, []byte{0}, []byte(" "))))
	}
	fields, err := stat(pid)
	if err != nil || fields[statState] == "Z" || fields[statState] == "X" {
		return ""
	}
	if flags, err := strconv.ParseUint(fields[statFlags], 10, 64); err != nil || flags&kernelThread != 0 {
		return ""
	}
	return noArguments
}

// Fields of /proc/PID/stat, counted from the one after the name, and the flag
// PF_KTHREAD of linux/sched.h.
const (
	statState    = 0
	statParent   = 1
	statFlags    = 6
	kernelThread = 0x00200000
)

// stat returns the fields of /proc/PID/stat after the name, which may contain spaces.
func stat(pid int) ([]string, error) {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(line[bytes.LastIndexByte(line, ')')+1:])), nil
}

// related reports whether a process descends from the test or from its parent.
// The test itself is responsible for its children, and the go command, its
// parent, starts and ends helpers at any time.
func related(pid int) bool {
	for range 64 {
		if pid == os.Getpid() || pid == os.Getppid() {
			return true
		}
		fields, err := stat(pid)
		if err != nil {
			return true // it has exited
		}
		pid, err = strconv.Atoi(fields[statParent])
		if err != nil || pid <= 1 {
			return false
		}
	}
	return false
}

// namespaces lists the network namespaces that a process is in or that are bind
// mounted.
func namespaces() ([]string, error) {
	seen := map[string]bool{}
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if ns, err := os.Readlink(l); err == nil {
			seen[ns] = true
		}
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for _, m := range regexp.MustCompile(`net:\[\d+\]`).FindAllString(string(info), -1) {
		seen[m] = true
	}
	var out []string
	for ns := range seen {
		out = append(out, ns)
	}
	return out, nil
}

func mounts() ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, l := range strings.Split(strings.TrimSpace(string(data)), "\n") {
		f := strings.Fields(l)
		out = append(out, f[4]+" "+strings.Join(f[8:], " "))
	}
	return out, nil
}

func cgroups() ([]string, error) { return walk("/sys/fs/cgroup", true) }

func files() ([]string, error) {
	run, err := walk("/run", false)
	if err != nil {
		return nil, err
	}
	state, err := walk("/var/lib/bottle", false)
	if err != nil {
		return nil, err
	}
	// What containerd keeps of a task on disk, next to the bundle in /run.
	bundles, err := filepath.Glob(filepath.Join(os.Getenv("LAB_DISK"), "containerd/io.containerd.runtime.v2.task/*/*"))
	return slices.Concat(run, state, bundles), err
}

// loopDevices lists the files of this test host that loop devices use. Their paths
// contain the namespace; the devices are the machine's, with other test hosts on it.
func loopDevices() ([]string, error) {
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, f := range backing {
		name, err := os.ReadFile(f) // an error means that it was detached meanwhile
		if err == nil && strings.Contains(string(name), os.Getenv("CONTAINERD_NAMESPACE")) {
			out = append(out, f+" "+strings.TrimSpace(string(name)))
		}
	}
	return out, nil
}

// ignored matches the programs that bottles share, and directories that containerd and its shims create with the
// first task of a namespace and keep, those of the test host, and the records of checks,
// which outlive bottles (package proven).
var ignored = regexp.MustCompile(`^/run/(bottle-lab/.*|bottle|bottle/\.proven(/\.?(runsc|runc|kernel))?|containerd|containerd/s|containerd/fifo|containerd/runc(/[^/]+)?|lab/containerd/io\.containerd\.runtime\.v2\.task/[^/]+)$|^/var/lib/bottle(/\.programs(/[0-9a-f]{32}(/(guest|proxy|runsc-calls))?)?)?$`)

// walk lists the files below root, across mount points. It ignores files that
// are removed while it runs.
func walk(root string, onlyDirs bool) ([]string, error) {
	var out []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // the file was removed meanwhile
		}
		if (!onlyDirs || d.IsDir()) && !ignored.MatchString(p) {
			out = append(out, p)
		}
		return nil
	})
	return out, err
}

func sysctls() ([]string, error) {
	var out []string
	for _, f := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/all/disable_ipv6", "ipv4/conf/all/rp_filter"} {
		v, err := os.ReadFile("/proc/sys/net/" + f)
		if err != nil {
			return nil, err
		}
		out = append(out, f+"="+strings.TrimSpace(string(v)))
	}
	return out, nil
}
