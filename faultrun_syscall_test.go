package bottle

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/runtime"
)

// Faults of system calls use seccomp's user notifications (seccomp_unotify(2)): the kernel
// lets the test decide about each call of `bottle run` and of the CNI plugins that it
// starts, and the test either lets it continue or returns an error for it.

// syscallFault lets one call fail, or that one and all later ones.
type syscallFault struct {
	Name    string
	Call    int // from 1 on, in the order in which the test sees them; 0: none fails
	Lasting bool
}

func (f syscallFault) String() string {
	text := fmt.Sprintf("%s/call %d", f.Name, f.Call)
	if f.Lasting {
		text += " and all later"
	}
	return text
}

// numbers are the diverted system calls: all, if they are only counted.
func (f syscallFault) numbers() []uintptr {
	var out []uintptr
	for name, c := range failingCalls {
		if f.Name == "" || f.Name == name {
			out = append(out, c.nr)
		}
	}
	return out
}

// failingCalls are the system calls that can fail, each with an error that the kernel may
// return for it. Not among them are those whose failure the Go runtime answers by ending
// the process (futex, mmap, epoll, signals, threads), which is the case of a killed bottle,
// and those that cannot fail (getpid, clock_gettime) or only for invalid arguments (close).
var failingCalls = map[string]struct {
	nr    uintptr
	errno syscall.Errno
}{
	"openat": {unix.SYS_OPENAT, unix.EMFILE}, "openat2": {unix.SYS_OPENAT2, unix.EMFILE},
	"read": {unix.SYS_READ, unix.EIO}, "write": {unix.SYS_WRITE, unix.ENOSPC}, "pread64": {unix.SYS_PREAD64, unix.EIO},
	"getdents64": {unix.SYS_GETDENTS64, unix.EIO}, "newfstatat": {unix.SYS_NEWFSTATAT, unix.EIO},
	"readlinkat": {unix.SYS_READLINKAT, unix.EIO}, "fstat": {unix.SYS_FSTAT, unix.EIO},
	"statfs": {unix.SYS_STATFS, unix.EIO}, "faccessat": {unix.SYS_FACCESSAT, unix.EIO},
	"mkdirat": {unix.SYS_MKDIRAT, unix.ENOSPC}, "mknodat": {unix.SYS_MKNODAT, unix.ENOSPC},
	"symlinkat": {unix.SYS_SYMLINKAT, unix.ENOSPC}, "linkat": {unix.SYS_LINKAT, unix.ENOSPC},
	"renameat": {unix.SYS_RENAMEAT, unix.ENOSPC}, "renameat2": {unix.SYS_RENAMEAT2, unix.ENOSPC},
	"unlinkat": {unix.SYS_UNLINKAT, unix.EIO}, "ftruncate": {unix.SYS_FTRUNCATE, unix.EIO}, "fsync": {unix.SYS_FSYNC, unix.EIO},
	"fchmodat": {unix.SYS_FCHMODAT, unix.EIO}, "fchmod": {unix.SYS_FCHMOD, unix.EIO},
	"fchownat": {unix.SYS_FCHOWNAT, unix.EIO}, "fchown": {unix.SYS_FCHOWN, unix.EIO},
	"flock": {unix.SYS_FLOCK, unix.ENOLCK}, "mount": {unix.SYS_MOUNT, unix.ENOMEM}, "umount2": {unix.SYS_UMOUNT2, unix.EBUSY},
	"setns": {unix.SYS_SETNS, unix.ENOMEM}, "unshare": {unix.SYS_UNSHARE, unix.ENOMEM},
	"socket": {unix.SYS_SOCKET, unix.EMFILE}, "bind": {unix.SYS_BIND, unix.EADDRINUSE}, "connect": {unix.SYS_CONNECT, unix.ECONNREFUSED},
	"sendto": {unix.SYS_SENDTO, unix.ENOBUFS}, "sendmsg": {unix.SYS_SENDMSG, unix.ENOBUFS},
	"recvfrom": {unix.SYS_RECVFROM, unix.ENOBUFS}, "recvmsg": {unix.SYS_RECVMSG, unix.ENOBUFS},
	"setsockopt": {unix.SYS_SETSOCKOPT, unix.ENOBUFS}, "getsockname": {unix.SYS_GETSOCKNAME, unix.ENOBUFS},
	"clone": {unix.SYS_CLONE, unix.EAGAIN}, "execve": {unix.SYS_EXECVE, unix.ENOMEM}, "pipe2": {unix.SYS_PIPE2, unix.EMFILE},
	"pidfd_open": {unix.SYS_PIDFD_OPEN, unix.EMFILE}, "pidfd_send_signal": {unix.SYS_PIDFD_SEND_SIGNAL, unix.EPERM},
	"inotify_init1": {unix.SYS_INOTIFY_INIT1, unix.EMFILE}, "inotify_add_watch": {unix.SYS_INOTIFY_ADD_WATCH, unix.ENOSPC},
	"prlimit64": {unix.SYS_PRLIMIT64, unix.EPERM}, "dup3": {unix.SYS_DUP3, unix.EMFILE}, "ioctl": {unix.SYS_IOCTL, unix.EIO},
	"fcntl": {unix.SYS_FCNTL, unix.EMFILE}, "lseek": {unix.SYS_LSEEK, unix.EIO},
}

// syscallFaults lists the cases: of each system call that a life of a bottle uses, the first
// call, the last one and some between fail, and from one on all.
func syscallFaults(t *testing.T, dir string, random *rand.Rand) []fault {
	t.Helper()
	var out []fault
	for rt, between := range map[string]int{runtime.RuntimeRunsc: 5, runtime.RuntimeRunc: 1} {
		f := fault{Runtime: rt, Dir: dir, Syscall: &syscallFault{}}
		cmd := f.command(t.Context(), t)
		calls := divert(t, cmd, f.Syscall)
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("count system calls: %v: %s", err, text)
		}
		counts := calls.end().counts
		for _, name := range sortedKeys(counts) {
			n := counts[name]
			chosen := []int{1, n}
			for range between {
				chosen = append(chosen, 1+random.IntN(n))
			}
			slices.Sort(chosen)
			for _, call := range slices.Compact(chosen) {
				out = append(out, fault{Runtime: rt, Syscall: &syscallFault{Name: name, Call: call}})
			}
			out = append(out, fault{Runtime: rt, Syscall: &syscallFault{Name: name, Call: 1 + random.IntN(n), Lasting: true}})
		}
	}
	return out
}

func sortedKeys(m map[string]int) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// listenerSocket is the descriptor through which a diverted process hands over the
// listener of its notifications.
const listenerSocket = 3

// divertSyscalls hands the decision about the given system calls to the test, for all
// threads of this process and all processes that it starts.
func divertSyscalls(numbers []uintptr) error {
	const (
		offsetNr, offsetArch, offsetArg0 = 0, 4, 16 // struct seccomp_data
		load                             = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal                            = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		ret                              = unix.BPF_RET | unix.BPF_K
	)
	arch := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[goruntime.GOARCH]
	prog := []unix.SockFilter{
		{Code: load, K: offsetArch}, {Code: equal, K: arch, Jt: 1}, {Code: ret, K: unix.SECCOMP_RET_ALLOW},
		{Code: load, K: offsetNr},
	}
	for i, nr := range numbers {
		prog = append(prog, unix.SockFilter{Code: equal, K: uint32(nr), Jt: uint8(len(numbers) - i)}) //nolint:gosec // both are small
	}
	prog = append(prog,
		unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW},
		// What hands over the listener cannot wait for it.
		unix.SockFilter{Code: equal, K: unix.SYS_SENDMSG, Jf: 3},
		unix.SockFilter{Code: load, K: offsetArg0},
		unix.SockFilter{Code: equal, K: listenerSocket, Jf: 1},
		unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW},
		unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_USER_NOTIF},
	)
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_TSYNC |
		unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	fd, _, errno := syscall.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return fmt.Errorf("install filter: %w", errno)
	}
	if err := unix.Sendmsg(listenerSocket, []byte{0}, unix.UnixRights(int(fd)), nil, 0); err != nil {
		return fmt.Errorf("hand over listener: %w", err)
	}
	// Only the test may hold it: it learns from its end that all processes have ended.
	return errors.Join(unix.Close(int(fd)), unix.Close(listenerSocket))
}

// diversion decides about the system calls of a process.
type diversion struct {
	t      *testing.T
	fault  *syscallFault
	socket *os.File
	peer   *os.File // the process's end
	wg     sync.WaitGroup

	counts map[string]int
	failed int
}

// divert prepares a command that calls divertSyscalls.
func divert(t *testing.T, cmd *exec.Cmd, f *syscallFault) *diversion {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	d := &diversion{
		t: t, fault: f, counts: map[string]int{},
		socket: os.NewFile(uintptr(fds[0]), "listener socket"), peer: os.NewFile(uintptr(fds[1]), "listener socket"),
	}
	cmd.ExtraFiles = []*os.File{d.peer} // the first is listenerSocket
	d.wg.Go(d.serve)
	return d
}

// end waits until all diverted processes have ended.
func (d *diversion) end() *diversion {
	_ = d.peer.Close() // if the process never used it, ends serve
	d.wg.Wait()
	_ = d.socket.Close()
	return d
}

func (d *diversion) serve() {
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(int(d.socket.Fd()), make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if n == 0 || err != nil {
		return // the process has ended before
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		d.t.Error(err)
		return
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		d.t.Error(err)
		return
	}
	defer func() { _ = unix.Close(fds[0]) }()
	for d.decide(fds[0]) {
	}
}

// notification is struct seccomp_notif, and response struct seccomp_notif_resp.
type notification struct {
	id                 uint64
	pid, flags         uint32
	nr                 int32
	arch               uint32
	instructionPointer uint64
	args               [6]uint64
}

type response struct {
	id    uint64
	val   int64
	errno int32
	flags uint32
}

// decide answers one notification. It returns false when all processes have ended.
func (d *diversion) decide(fd int) bool {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} //nolint:gosec // a descriptor
	if _, err := unix.Poll(poll, -1); err != nil {
		return errors.Is(err, unix.EINTR)
	}
	if poll[0].Revents&unix.POLLIN == 0 {
		return false
	}
	var n notification
	_, _, errno := syscall.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n)))
	if errno != 0 {
		return errno == unix.ENOENT || errno == unix.EINTR // the thread was killed
	}
	r := response{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	if errno := d.errorOf(n); errno != 0 {
		r = response{id: n.id, errno: -int32(errno)}
	}
	_, _, _ = syscall.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&r))) // the thread may have been killed
	return true
}

// errorOf counts a call and returns the error that it gets.
func (d *diversion) errorOf(n notification) syscall.Errno {
	for name, c := range failingCalls {
		if c.nr != uintptr(n.nr) {
			continue
		}
		if d.exempt(n) {
			return 0
		}
		d.counts[name]++
		count := d.counts[name]
		if name == d.fault.Name && (count == d.fault.Call || d.fault.Lasting && count > d.fault.Call) {
			d.failed++
			return c.errno
		}
	}
	return 0
}

// exempt reports whether a call must not fail: the Go runtime would end the process if it
// could not create a thread or wake its poller.
func (d *diversion) exempt(n notification) bool {
	switch uintptr(n.nr) {
	case unix.SYS_CLONE:
		return n.args[0]&unix.CLONE_THREAD != 0
	case unix.SYS_READ, unix.SYS_WRITE:
		name, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", n.pid, n.args[0]))
		return err != nil || strings.Contains(name, "eventfd")
	}
	return false
}
