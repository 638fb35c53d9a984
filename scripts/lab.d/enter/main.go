// Command enter runs a command inside a lab's namespaces: it joins the
// cgroups, the mount, network, UTS, IPC, PID and cgroup namespaces of the lab's
// init, keeps the current folder, and ends with the command's exit code.
//
// nsenter(1) is not used because it dies of a Ctrl-C or a SIGTERM while the
// command is still cleaning up behind it, and because it cannot tell a recycled
// process id from the lab's init.
//
// Usage: enter LABDIR COMMAND [ARGUMENT...]
//
// LABDIR holds the files written by scripts/lab: `init` (process id and start
// time), `cgroups` (folders to join, one a line) and `env` (KEY=VALUE, one a
// line; `PATH+=` is put before the caller's PATH and `-KEY` takes KEY away).
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

// Exit codes as docker's and env(1)'s: the tool itself, not executable, not found.
const (
	exitOwn           = 125
	exitNotExecutable = 126
	exitNotFound      = 127
)

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	if len(args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: enter LABDIR COMMAND [ARGUMENT...]")
		return exitOwn
	}
	// Namespaces are a thread's: the child has to be forked by this one.
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
		return exitOwn, fmt.Errorf("find the current folder: %w", err)
	}
	env, err := environment(labDir, os.Environ())
	if err != nil {
		return exitOwn, err
	}
	if err := join(labDir); err != nil {
		return exitOwn, err
	}
	if err := unix.Chdir(cwd); err != nil {
		return exitOwn, fmt.Errorf("enter the current folder %s inside the lab: %w", cwd, err)
	}
	path, code, err := lookPath(command[0], env)
	if err != nil {
		return code, err
	}
	// A killed `enter` must not leave its command behind in the lab. setpriv(1)
	// asks for that, as Go's Pdeathsig ends a child whose parent is in another
	// PID namespace.
	setpriv, code, err := lookPath("setpriv", env)
	if err != nil {
		return code, err
	}
	return runChild(setpriv, append([]string{"setpriv", "--pdeathsig", "KILL", "--", path}, command[1:]...), env)
}

// lookPath finds name in env's PATH, as seen in the lab's mount namespace.
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

// isDir uses stat(2) on this thread: it alone is in the lab's mount namespace.
func isDir(path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// runChild starts the command in this process group, so that the terminal's
// signals reach it directly, and passes on those sent to this process alone.
func runChild(path string, argv, env []string) (int, error) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2)
	pid, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{Env: env, Files: []uintptr{0, 1, 2}})
	if err != nil {
		return exitNotExecutable, fmt.Errorf("run %s: %w", path, err)
	}
	go passOn(signals, pid)
	var status syscall.WaitStatus
	for {
		_, err = syscall.Wait4(pid, &status, 0, nil)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		return exitOwn, fmt.Errorf("wait for %s: %w", path, err)
	}
	if status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// passOn sends what this process is sent to the command. An interrupt or quit
// typed at a terminal has reached the command already (same process group);
// a second one would end a teardown that the first began.
func passOn(signals <-chan os.Signal, pid int) {
	_, err := unix.IoctlGetInt(0, unix.TIOCGPGRP)
	onTerminal := err == nil
	for s := range signals {
		sig := s.(syscall.Signal)
		if onTerminal && (sig == unix.SIGINT || sig == unix.SIGQUIT) {
			continue
		}
		// The command may be gone already; its exit is what counts.
		_ = syscall.Kill(pid, sig)
	}
}
