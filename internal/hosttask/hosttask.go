// Package hosttask reads on the host how tasks are: what their runtimes have recorded, what
// their cgroups have counted, and the limits that bottle has recorded of them. It asks
// neither containerd nor the runtimes.
package hosttask

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/atomicfile"
)

// Names in a bottle's directory on tmpfs.
const (
	// LaunchFile is empty until the launch of the bottle is complete.
	LaunchFile = "launching"
	// SuspendedFile exists while the bottle is suspended.
	SuspendedFile = "suspended.json"
	// ControlFile is a FIFO: what is written to it, PID 1 reads from its standard input.
	ControlFile = "control"
	// GuestDir is mounted in the sandbox.
	GuestDir = "guest"
)

// PreparedFile is in the directory on disk of a bottle that was launched ahead of its use.
const PreparedFile = "prepared.json"

// limitsFile is in a bottle's directory on tmpfs.
const limitsFile = "limits.json"

// Limits are those of an agent's task that it can reach.
type Limits struct {
	// Disk is the size of the writable layer, in bytes; 0: it is not limited.
	Disk int64
	// DiskFile occupies as much space as the layer uses. It exists once something was written.
	DiskFile string
}

// Record writes the limits of a task to its bottle's directory.
func (l Limits) Record(dir string) error {
	data, err := json.Marshal(l)
	if err == nil {
		err = atomicfile.Write(filepath.Join(dir, limitsFile), data, 0o600)
	}
	return err
}

// LimitsOf returns the recorded limits of a task. A bottle that another version has
// launched has no record.
func LimitsOf(dir string) (l Limits, err error) {
	data, err := os.ReadFile(filepath.Join(dir, limitsFile))
	if err == nil {
		err = json.Unmarshal(data, &l)
	}
	return l, err
}

// DiskFull reports whether the writable layer is full, or cannot be measured.
func (l Limits) DiskFull() bool {
	if l.Disk == 0 {
		return false
	}
	used, err := Occupied(l.DiskFile)
	return err != nil || used >= l.Disk
}

// Occupied returns the space that a file occupies, in bytes: 0 if it does not exist.
func Occupied(file string) (int64, error) {
	fi, err := os.Stat(file)
	if os.IsNotExist(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	const block = 512 // unit of st_blocks (stat(2))
	return fi.Sys().(*syscall.Stat_t).Blocks * block, nil
}

// CgroupRoot is where the cgroup file systems are mounted.
const CgroupRoot = "/sys/fs/cgroup"

// CgroupPath returns the cgroup of a container. No component may begin with "pod": runsc's
// shim would treat it as a Kubernetes pod's. An identifier contains no double dash, so that
// no other namespace and ID have the same path.
func CgroupPath(namespace, id string) string { return fmt.Sprintf("/%s--%s", namespace, id) }

// Events counts the events of a cgroup.
type Events struct {
	OOMKills int64 // processes killed because of the memory limit
	NoPids   int64 // processes not created because of the process limit
}

// EventsOf reads the counters of a cgroup. One that does not exist has none.
func EventsOf(group string) Events {
	// The same line is in a file of cgroup version 2 and, since Linux 4.13, in one of
	// version 1.
	return Events{
		OOMKills: max(Counter(group, "", "memory.events", "oom_kill"), Counter(group, "memory", "memory.oom_control", "oom_kill")),
		NoPids:   max(Counter(group, "", "pids.events", "max"), Counter(group, "pids", "pids.events", "max")),
	}
}

// Counter reads a line "key value" of a file of a cgroup. The controller is empty for cgroup
// version 2.
func Counter(group, controller, file, key string) int64 {
	data, err := os.ReadFile(filepath.Join(CgroupRoot, controller, group, file))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if k, v, _ := strings.Cut(strings.TrimSpace(line), " "); k == key {
			n, _ := strconv.ParseInt(v, 10, 64)
			return n
		}
	}
	return 0
}

// RuncProcess returns the first process of a container that has not ended, by runc's
// directory of the container, as runc does (libcontainer, Container.currentStatus).
func RuncProcess(dir string) (pid int, p Process, ok bool) {
	pid, start, ok := runcRecord(filepath.Join(dir, "state.json"))
	p, exists := ProcessOf(pid)
	return pid, p, ok && exists && p.Start == start
}

// runcRecord reads the first process and its start from runc's record, which is replaced
// by a rename. They are at its beginning, before the container's configuration, which takes
// longer to parse than everything else in a list.
func runcRecord(path string) (pid int, start uint64, ok bool) {
	record := json.NewDecoder(bytes.NewReader(ReadStart(path, 4096)))
	if t, err := record.Token(); err != nil || t != json.Delim('{') {
		return 0, 0, false
	}
	for record.More() && (pid == 0 || start == 0) {
		key, err := record.Token()
		if err != nil {
			return 0, 0, false
		}
		var value any = &json.RawMessage{}
		switch key {
		case "init_process_pid":
			value = &pid
		case "init_process_start":
			value = &start
		}
		if err := record.Decode(value); err != nil {
			return 0, 0, false
		}
	}
	return pid, start, pid != 0 && start != 0
}

// Process is a process as /proc/PID/stat describes it.
type Process struct {
	Parent int
	Start  uint64 // in clock ticks after the boot
}

// ProcessOf returns a process that has not ended.
func ProcessOf(pid int) (Process, bool) {
	if pid <= 0 {
		return Process{}, false
	}
	var buf [2048]byte // longer than the kernel's line can be
	data := ReadOnce("/proc/"+strconv.Itoa(pid)+"/stat", buf[:])
	// After the name, in parentheses: the state, the parent, and as the 20th the start
	// (proc_pid_stat(5)).
	rest := data[bytes.LastIndexByte(data, ')')+1:]
	var p Process
	for field := 1; field <= 20; field++ {
		rest = bytes.TrimLeft(rest, " ")
		end := bytes.IndexByte(rest, ' ')
		if end < 0 {
			return Process{}, false
		}
		text := rest[:end]
		rest = rest[end:]
		var err error
		switch field {
		case 1:
			if state := string(text); state == "Z" || state == "X" || state == "x" {
				return Process{}, false
			}
		case 2:
			p.Parent, err = strconv.Atoi(string(text))
		case 20:
			p.Start, err = strconv.ParseUint(string(text), 10, 64)
		}
		if err != nil {
			return Process{}, false
		}
	}
	return p, true
}

// ReadOnce reads the beginning of a file that is not a FIFO into buf, with a single read:
// all of a file of tmpfs, or one that the kernel writes as one text, if it is shorter than
// buf. It returns the part of buf that was read; empty if that fails.
func ReadOnce(path string, buf []byte) []byte {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	n, err := unix.Read(fd, buf)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Read(fd, buf)
	}
	_ = unix.Close(fd) // nothing was written
	if err != nil {
		return nil
	}
	return buf[:n]
}

// ReadFile reads a file that is not a FIFO; empty if that fails. A search through all
// processes needs a third of the system calls with it that os.ReadFile makes, and no memory for
// most of them.
func ReadFile(path string) []byte { return ReadStart(path, math.MaxInt) }

// ReadStart is ReadFile for the beginning of a file, of at least limit bytes if there are so
// many.
func ReadStart(path string, limit int) []byte {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written
	var data []byte
	var part [4096]byte
	for len(data) < limit { // or until the end, because the kernel may return less than there is
		n, err := unix.Read(fd, part[:])
		if err != nil || n <= 0 {
			break
		}
		data = append(data, part[:n]...)
	}
	return data
}
