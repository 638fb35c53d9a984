// Package guest implements the program that bottle runs inside a sandbox: PID 1,
// and the helper that starts every proto. The agent can read it, and its size
// delays every session, so it is built as a separate small program
// (cmd/bottle/guest/program) that is embedded in bottle. A bottle binary built
// without it runs itself instead. Of this module the package imports only
// sshagent/relay.
package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/filetree"
)

// Exit codes, as used by docker and shells.
const (
	exitBottle        = 125 // bottle itself failed
	exitNotExecutable = 126 // the command was found but cannot be executed
	exitNotFound      = 127 // the command was not found
	exitSignal        = 128 // plus the signal number
)

// Program is the path of this program inside a bottle.
const Program = "/.bottle/init"

// Run executes a guest command if the program was started as Program:
//
//   - init runs PID 1
//   - exec [OPTION VALUE]... -- COMMAND starts a session
//   - session [OPTION VALUE]... -- COMMAND starts the session that PID 1 holds
//   - attach connects to PID 1
//   - agent SOCKET runs the inner end of the ssh agent relay
//   - connect PROXY HOST PORT is ssh's ProxyCommand
//   - nothing returns at once
//   - files COMMAND... lists, packs and unpacks files for bottle on the host
//
// ok is false if args is not a guest command. code is the exit code.
func Run(args []string) (code int, ok bool) {
	if len(args) == 0 || os.Args[0] != Program {
		return 0, false
	}
	switch args[0] {
	case "init":
		return guestInit(), true
	case "exec":
		return guestExec(args[1:]), true
	case "session":
		return guestSession(args[1:]), true
	case "attach":
		return guestAttach(), true
	case "agent":
		return guestRelay(args[1:]), true
	case "connect":
		return guestConnect(args[1:]), true
	case "nothing":
		return 0, true
	case "files":
		return filetree.Command(args[1:], os.Stdin, os.Stdout, os.Stderr), true
	}
	return 0, false
}

// guestExec applies the options and executes the command. The environment file
// contains variables that must not pass through containerd.
func guestExec(args []string) int {
	env := newEnviron(os.Environ())
	for len(args) > 1 && args[0] != "--" {
		if err := guestOption(env, args[0], args[1]); err != nil {
			fmt.Fprintln(os.Stderr, "bottle:", err)
			if args[0] == "--dir" {
				return exitNotExecutable
			}
			return exitBottle
		}
		args = args[2:]
	}
	if len(args) < 2 {
		fmt.Fprintln(os.Stderr, "bottle: missing command")
		return exitBottle
	}
	prepareCommand(env)
	command := args[1:]
	path, err := lookCommand(env, "", command[0])
	if err == nil && onTerminal() {
		var code int
		if code, err = supervise(path, command, env.list()); err == nil {
			return code
		}
	}
	if err == nil {
		err = syscall.Exec(path, command, env.list())
	}
	fmt.Fprintf(os.Stderr, "bottle: run %s: %v\n", command[0], err)
	return codeOf(err)
}

// codeOf returns the exit code for a command that cannot be run.
func codeOf(err error) int {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
		return exitNotFound
	}
	return exitNotExecutable
}

// prepareCommand prepares this process, and the environment of a session's command.
func prepareCommand(env *environ) {
	excludeFromCores()
	if err := prepareEnv(env); err != nil {
		fmt.Fprintln(os.Stderr, "bottle:", err)
	}
}

// prepareEnv completes the environment of a session's command. After an error the user can
// still answer Claude Code's question.
func prepareEnv(env *environ) error {
	setTerminal(env)
	return approveKey(env)
}

// excludeFromCores keeps secret variables out of core dumps under runc.
// RLIMIT_CORE does not apply to cores that the host pipes to a program. The filter
// is inherited by all children (core(5)). gVisor does not write core dumps and has
// no such file.
func excludeFromCores() { _ = os.WriteFile("/proc/self/coredump_filter", []byte("0"), 0) }

func guestOption(env *environ, name, value string) error {
	switch name {
	case "--env-file":
		return env.load(value)
	case "--size":
		var size unix.Winsize
		if _, err := fmt.Sscanf(value, "%dx%d", &size.Col, &size.Row); err != nil {
			return fmt.Errorf("parse terminal size %q: %w", value, err)
		}
		// Running the command without a size is better than failing.
		_ = unix.IoctlSetWinsize(0, unix.TIOCSWINSZ, &size)
		return nil
	case "--dir":
		return changeDir(value)
	case "--workdir":
		// An image's working directory may be inaccessible to its user. The session
		// starts anyway.
		if err := makeAndChangeDir(value); err != nil {
			fmt.Fprintln(os.Stderr, "bottle:", err)
		}
		return nil
	}
	return fmt.Errorf("unknown option %s", name)
}

func changeDir(dir string) error {
	if err := os.Chdir(dir); err != nil {
		return fmt.Errorf("change to directory %s: %w", dir, errors.Unwrap(err))
	}
	return nil
}

// makeAndChangeDir creates the directory if it does not exist. The host cannot
// create it if it is on a file system mounted inside, such as /tmp.
func makeAndChangeDir(dir string) error {
	err := changeDir(dir)
	if errors.Is(err, fs.ErrNotExist) && os.MkdirAll(dir, 0o755) == nil {
		err = changeDir(dir)
	}
	return err
}

// lookCommand finds a command in PATH as execvp(3) does, for a process in a directory
// (empty: in this process's). A name that contains a slash is returned unchanged.
func lookCommand(env *environ, cwd, name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	denied := false
	for _, dir := range filepath.SplitList(env.get("PATH")) {
		p := filepath.Join(dir, name)
		at := p
		if !filepath.IsAbs(p) {
			at = filepath.Join(cwd, p)
		}
		fi, err := os.Stat(at)
		if err != nil || fi.IsDir() {
			continue
		}
		if fi.Mode()&0o111 != 0 {
			return p, nil
		}
		denied = true
	}
	if denied {
		return "", fs.ErrPermission
	}
	return "", exec.ErrNotFound
}
