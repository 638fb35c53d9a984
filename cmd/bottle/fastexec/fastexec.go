// Package fastexec begins the session of a plain `bottle exec` before the rest of the program
// is initialized, which takes longer than many commands do. If the command ends soon and
// nothing is to be reported, the program ends with it. Otherwise package main takes the
// session over, as if it had begun it.
//
// It acts only where the outcome is that of package main: without a terminal, options that
// need more, or a policy or an audit log, in a bottle that
// runs, and whose proxy runs. In every other case it does nothing. It may import only small
// packages, because it acts when it is initialized (go.dev/ref/spec, "Program initialization":
// in the order of import paths, once what a package imports is initialized).
package fastexec

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hostconfig"
	"github.com/bot-bottle/bottle/internal/hosttask"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/internal/nocore"
	"github.com/bot-bottle/bottle/internal/rootonly"
	"github.com/bot-bottle/bottle/internal/sessionclient"
	proto "github.com/bot-bottle/bottle/internal/sessionproto"
)

// Signals are those that go to a session instead of ending the program.
var Signals = []os.Signal{
	syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH,
}

// Session is a session that was begun.
type Session struct {
	Bottle  string // its identifier
	Process *sessionclient.Process
	Before  hosttask.Events // of the bottle's cgroup
	Signals chan os.Signal  // what was received since before the session, and not handled

	group  string
	limits hosttask.Limits
}

// begun is set before package main is initialized.
var begun *Session

// Begun returns the session of this process; nil: none was begun.
func Begun() *Session { return begun }

func init() {
	if len(os.Args) < 2 || os.Args[1] != "exec" || os.Args[0] == proto.GuestDir+"/init" {
		return
	}
	r, ok := parse(os.Args[2:])
	if !ok || unix.Getuid() != 0 || unix.Geteuid() != 0 || isTerminal(0) && isTerminal(1) {
		return
	}
	b, ok := find(caller.Current(), r.name)
	if !ok {
		return
	}
	if begun = begin(b, r); begun != nil {
		begun.wait()
	}
}

// request is what the arguments ask for.
type request struct {
	name    string
	command []string
	dir     string
}

// parse reads arguments. ok is false for those that package main is to read, or to reject.
func parse(args []string) (r request, ok bool) {
	for ; len(args) > 0; args = args[1:] {
		switch args[0] {
		case "-T", "--no-tty", "-i", "--interactive":
			continue
		case "-w", "--workdir":
			if len(args) < 2 || !filepath.IsAbs(args[1]) {
				return r, false
			}
			r.dir, args = args[1], args[1:]
			continue
		}
		break
	}
	if len(args) < 2 || strings.HasPrefix(args[0], "-") {
		return r, false
	}
	r.name, args = args[0], args[1:]
	if args[0] == "--" {
		args = args[1:]
	} else if strings.HasPrefix(args[0], "-") {
		return r, false
	}
	r.command = args
	return r, len(args) > 0
}

func isTerminal(fd int) bool {
	_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	return err == nil
}

// bottle is a running bottle.
type bottle struct {
	id, dir, group string
	limits         hosttask.Limits
}

// find returns the caller's bottle. ok is false if it does not run with its proxy, or if the
// host's or the user's configuration may decide something.
func find(who caller.Caller, name string) (b bottle, ok bool) {
	values, ok := systemConfig(filepath.Join(hostconfig.SystemDir, hostconfig.SystemFile))
	if !ok {
		return b, false
	}
	setting := func(variable, key, fallback string) string {
		return cmp.Or(os.Getenv(variable), values[key], fallback)
	}
	owner := who.Owner()
	namespace := setting(hostconfig.Namespace, hostconfig.KeyNamespace, hostconfig.DefaultNamespace)
	switch {
	case !isPlain(namespace) || name == "." || name == ".." || strings.Contains(name, "/") || strings.HasPrefix(name, "."):
		return b, false
	// What a user of sudo may do depends on the policy, and what is in the environment on root.
	case owner != 0 && (exists(hostconfig.SystemDir, hostconfig.PolicyFile) || anySet(hostconfig.Variables())):
		return b, false
	}
	if who.Home != "" {
		if _, err := who.Stat(filepath.Join(who.Home, hostconfig.UserFile)); !errors.Is(err, fs.ErrNotExist) {
			return b, false
		}
	}
	runDir := setting(hostconfig.RunDir, hostconfig.KeyRunDir, hostconfig.DefaultRunDir)
	stateDir := setting(hostconfig.StateDir, hostconfig.KeyStateDir, hostconfig.DefaultStateDir)
	b.id = names.ID(name, owner)
	if !exists(runDir, filepath.Join(namespace, b.id)) && !exists(stateDir, filepath.Join(namespace, b.id)) &&
		!exists(stateDir, filepath.Join(hostconfig.WorkspacesDir, namespace, b.id)) {
		// What is left of a bottle of that name would have a directory, which is removed last.
		b.id = names.ID(names.Prefix+name, owner)
	}
	b.dir = filepath.Join(runDir, namespace, b.id)
	b.group = hosttask.CgroupPath(namespace, b.id)
	if strings.Contains(b.dir, names.Unusable) {
		return b, false
	}
	launched, err := os.Lstat(filepath.Join(b.dir, hosttask.LaunchFile))
	if err != nil || launched.Size() == 0 || exists(b.dir, hosttask.SuspendedFile) ||
		exists(filepath.Join(stateDir, namespace, b.id), hosttask.PreparedFile) {
		return b, false
	}
	if b.limits, err = hosttask.LimitsOf(b.dir); err != nil {
		return b, false
	}
	// Package main starts a proxy that does not run. It also needs containerd, for that.
	for _, suffix := range []string{names.ProxySuffix, names.FrontSuffix} {
		dir := filepath.Join(b.dir, suffix[1:])
		if suffix == names.FrontSuffix && !exists(dir, "") {
			continue
		}
		if _, _, ok := hosttask.RuncProcess(filepath.Join(dir, "runc", namespace, b.id+suffix)); !ok {
			return b, false
		}
	}
	return b, listens(setting(hostconfig.Address, hostconfig.KeyAddress, hostconfig.DefaultAddress))
}

// systemConfig returns the settings of the administrator. ok is false if they include more
// than settings, such as an audit log, or cannot be read.
func systemConfig(path string) (values map[string]string, ok bool) {
	data, err := rootonly.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, true
	}
	if err != nil {
		return nil, false
	}
	return hostconfig.Plain(data)
}

// isPlain reports whether a namespace certainly follows containerd's rule for identifiers.
func isPlain(namespace string) bool {
	return namespace != "" && len(namespace) <= 40 && !strings.Contains(namespace, names.Unusable) &&
		strings.Trim(namespace, "-") == namespace && !strings.Contains(namespace, "--") &&
		strings.Trim(namespace, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

func anySet(variables []string) bool {
	for _, v := range variables {
		if os.Getenv(v) != "" {
			return true
		}
	}
	return false
}

// exists reports whether there is a file, or that may be.
func exists(dir, name string) bool {
	_, err := os.Lstat(filepath.Join(dir, name))
	return !errors.Is(err, fs.ErrNotExist)
}

// listens reports whether something listens on a socket.
func listens(address string) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written
	return unix.Connect(fd, &unix.SockaddrUnix{Name: strings.TrimPrefix(address, "unix://")}) == nil
}

// reachTime bounds the wait for PID 1: package main waits longer.
const reachTime = 200 * time.Millisecond

// begin starts the command. It returns nil if PID 1 was not reached, and has nothing of the
// request.
func begin(b bottle, r request) *Session {
	nocore.Disable()
	exec, err := sessionclient.NewExec(filepath.Join(b.dir, hosttask.GuestDir), r.command, r.dir)
	if err != nil {
		return nil
	}
	exec.Stdin = true
	s := &Session{Bottle: b.id, Before: hosttask.EventsOf(b.group), Signals: make(chan os.Signal, 16), group: b.group, limits: b.limits}
	signal.Notify(s.Signals, Signals...)
	// Without this, a write to a closed pipe would end the program (os/signal, "SIGPIPE").
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, syscall.SIGPIPE)
	conn, err := sessionclient.Reach(context.Background(), filepath.Join(b.dir, hosttask.ControlFile), filepath.Join(b.dir, hosttask.GuestDir), reachTime,
		func() error { return nil })
	if err != nil {
		signal.Stop(s.Signals)
		signal.Stop(broken)
		s.raise()
		return nil
	}
	// If this fails, the connection is lost, and the process says so.
	_, _ = conn.Write(proto.JSON(proto.KindRequest, proto.Request{Op: proto.OpRun, Exec: exec}))
	s.Process = sessionclient.NewProcess(conn, sessionclient.Streams{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
	return s
}

// raise has signals that were received have the effect that they would have had.
func (s *Session) raise() {
	for {
		select {
		case sig := <-s.Signals:
			_ = unix.Kill(os.Getpid(), sig.(syscall.Signal)) // always possible
		default:
			return
		}
	}
}

// soon is how long the program waits for the end of the command before the rest of it is
// initialized. Meanwhile nobody watches the proxy.
const soon = 250 * time.Millisecond

// wait ends the program if the command ends soon, and nothing is to be reported.
func (s *Session) wait() {
	select {
	case <-s.Process.Done():
	case sig := <-s.Signals:
		s.Signals <- sig // package main's; nobody else reads, and there is space
		return
	case <-time.After(soon):
		return
	}
	state, err := s.Process.Close()
	if err != nil || state == nil || state.Code == 128+int(syscall.SIGKILL) || hosttask.EventsOf(s.group) != s.Before || s.limits.DiskFull() {
		return
	}
	os.Exit(state.Code)
}
