// Command enter runs a command inside a lab. It joins the cgroups and the
// mount, network, UTS, IPC, PID and cgroup namespaces of the lab's init process,
// keeps the current directory, and exits with the command's exit code.
//
// nsenter(1) is not used because it exits on Ctrl-C or SIGTERM while the command
// is still cleaning up, and because it does not detect that the process id of
// the lab's init was reused.
//
// Usage: enter LABDIR COMMAND [ARGUMENT...]
//
// LABDIR holds the files written by scripts/lab: `init` (process id and start
// time), `cgroups` (directories to join, one per line) and `env` (KEY=VALUE, one
// per line; `PATH+=` is prepended to the caller's PATH and `-KEY` unsets KEY).
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Exit codes follow docker and env(1).
const (
	exitError         = 125 // enter itself failed
	exitNotExecutable = 126
	exitNotFound      = 127
)

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	if len(args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: enter LABDIR COMMAND [ARGUMENT...]")
		return exitError
	}
	// Namespaces belong to a thread, so this thread must fork the child.
	runtime.LockOSThread()
	code, err := enter(args[0], args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "lab: %v\n", err)
	}
	return code
}

func enter(labDir string, command []string) (int, error) {
	cwd, err := os.Getwd()
	if err != nil {
		return exitError, fmt.Errorf("get the current directory: %w", err)
	}
	env, err := environment(labDir, os.Environ())
	if err != nil {
		return exitError, err
	}
	if err := join(labDir); err != nil {
		return exitError, err
	}
	if err := unix.Chdir(cwd); err != nil {
		return exitError, fmt.Errorf("change to directory %s inside the lab: %w", cwd, err)
	}
	path, code, err := lookPath(command[0], env)
	if err != nil {
		return code, err
	}
	// The command must not outlive a killed `enter`. setpriv(1) sets the
	// parent-death signal because Go's Pdeathsig kills a child whose parent is in
	// another PID namespace.
	setpriv, code, err := lookPath("setpriv", env)
	if err != nil {
		return code, err
	}
	return runChild(setpriv, append([]string{"setpriv", "--pdeathsig", "KILL", "--", path}, command[1:]...), env)
}

// lookPath searches env's PATH for name in the lab's mount namespace.
func lookPath(name string, env []string) (path string, code int, err error) {
	if !strings.Contains(name, "/") {
		for _, dir := range filepath.SplitList(lookup(env, "PATH")) {
			if candidate := filepath.Join(dir, name); unix.Access(candidate, unix.X_OK) == nil && !isDir(candidate) {
				return candidate, 0, nil
			}
		}
		return "", exitNotFound, fmt.Errorf("run %s: %w", name, exec.ErrNotFound)
	}
	switch err := unix.Access(name, unix.X_OK); {
	case errors.Is(err, unix.ENOENT):
		return "", exitNotFound, fmt.Errorf("run %s: %w", name, err)
	case err != nil:
		return "", exitNotExecutable, fmt.Errorf("run %s: %w", name, err)
	}
	return name, 0, nil
}

// isDir calls stat(2) on this thread, the only one in the lab's mount namespace.
func isDir(path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// runChild starts the command in this process group, so that signals from the
// terminal reach it directly, and forwards signals sent only to this process.
func runChild(path string, argv, env []string) (int, error) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2)
	pid, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{Env: env, Files: []uintptr{0, 1, 2}})
	if err != nil {
		return exitNotExecutable, fmt.Errorf("run %s: %w", path, err)
	}
	go forwardSignals(signals, pid)
	var status syscall.WaitStatus
	for {
		_, err = syscall.Wait4(pid, &status, 0, nil)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		return exitError, fmt.Errorf("wait for %s: %w", path, err)
	}
	if status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// forwardSignals sends the command every signal that this process receives,
// except an interrupt or quit typed at a terminal. The command has already
// received those (same process group), and a second one would abort the cleanup
// that the first one started.
func forwardSignals(signals <-chan os.Signal, pid int) {
	_, err := unix.IoctlGetInt(0, unix.TIOCGPGRP)
	onTerminal := err == nil
	for s := range signals {
		sig := s.(syscall.Signal)
		if onTerminal && (sig == unix.SIGINT || sig == unix.SIGQUIT) {
			continue
		}
		// The command may already have exited; its exit code is reported anyway.
		_ = syscall.Kill(pid, sig)
	}
}
