// Package leakcheck compares a test host before and after a test: network
// namespaces, links, addresses, routes, nftables, sysctls, mounts, processes,
// cgroups, files under /run and /var/lib/bottle, and containerd's containers,
// tasks, snapshots and leases. It is for tests only, run as root on the host
// that scripts/lab makes.
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
	"sort"
	"strconv"
	"strings"
	"time"
)

// TB is what the check needs of a test.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Cleanup(func())
}

// State is all that was seen, a line each, with the kind before it.
type State map[string]bool

// settle is how long what ends by itself may take to: a shim leaves a moment
// after its task, and containerd removes snapshots behind the call's back.
const settle = 10 * time.Second

// Check looks at the host now, and again when the test and its other clean-ups
// have ended; every difference fails the test. It must be called before
// anything that registers a clean-up of its own.
func Check(t TB) {
	t.Helper()
	before, err := Look()
	if err != nil {
		t.Fatalf("look at the host: %v", err)
	}
	t.Cleanup(func() {
		t.Helper()
		if diff := Wait(before, settle); diff != "" {
			t.Errorf("the host is not as it was:\n%s", diff)
		}
	})
}

// Wait looks until the host is as it was before, at the longest for limit, and
// returns the last difference, or nothing.
func Wait(before State, limit time.Duration) string {
	deadline := time.Now().Add(limit)
	for {
		now, err := Look()
		diff := ""
		if err != nil {
			diff = err.Error()
		} else {
			diff = Diff(before, now)
		}
		if diff == "" || time.Now().After(deadline) {
			return diff
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Diff lists what came and what went.
func Diff(before, after State) string {
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

// Look returns the host's present state.
func Look() (State, error) {
	s := State{}
	for kind, look := range map[string]func() ([]string, error){
		"process": processes, "network namespace": namespaces, "mount": mounts, "cgroup": cgroups,
		"file": files, "sysctl": sysctls,
		"link":      command("ip", "-o", "link"),
		"address":   command("ip", "-o", "address"),
		"route":     command("ip", "route", "show", "table", "all"),
		"nftables":  command("nft", "--stateless", "list", "ruleset"),
		"container": command("ctr", "containers", "ls", "-q"),
		"task":      command("ctr", "tasks", "ls", "-q"),
		"lease":     command("ctr", "leases", "ls", "-q"),
		"snapshot":  command("ctr", "snapshots", "ls"),
	} {
		lines, err := look()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", kind, err)
		}
		for _, l := range lines {
			s[kind+" "+l] = true
		}
	}
	return s, nil
}

// volatile is what changes in ip's output while nothing does.
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
			// A route's or neighbour's cache entry is not configuration.
			if l != "" && !strings.HasPrefix(l, "multicast ") {
				lines = append(lines, strings.Join(strings.Fields(l), " "))
			}
		}
		return lines, nil
	}
}

// processes lists every process of this PID namespace but those of the test
// itself: its own descendants and ancestors come and go.
func processes() ([]string, error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", d.Name(), "cmdline"))
		if err != nil || len(cmdline) == 0 || ours(pid) {
			continue
		}
		args := strings.TrimSpace(string(bytes.ReplaceAll(cmdline, []byte{0}, []byte(" "))))
		if strings.HasPrefix(args, "containerd --config ") {
			out = append(out, args) // a test may restart it
			continue
		}
		out = append(out, fmt.Sprintf("%d %s", pid, args))
	}
	return out, nil
}

// ours tells whether a process descends from the test's: the test ends those
// itself, and Go's own tools come and go above it.
func ours(pid int) bool {
	for range 64 {
		if pid == os.Getpid() || pid == os.Getppid() {
			return true
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return true // it has ended
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		pid, err = strconv.Atoi(fields[1])
		if err != nil || pid <= 1 {
			return false
		}
	}
	return false
}

// namespaces lists the network namespaces that processes are in or that are
// mounted somewhere.
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
	return append(run, state...), err
}

// notBottles are folders that containerd and its shims make once, with the
// first task of a namespace, and keep; and the test host's own.
var notBottles = regexp.MustCompile(`^/run/(bottle-lab/.*|containerd|containerd/s|containerd/fifo|containerd/runc|lab/containerd/io\.containerd\.runtime\.v2\.task/[^/]+)$`)

// walk lists what is under root, on whatever is mounted there; what vanishes
// meanwhile is not there.
func walk(root string, onlyDirs bool) ([]string, error) {
	var out []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // it vanished meanwhile
		}
		if (!onlyDirs || d.IsDir()) && !notBottles.MatchString(p) {
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
