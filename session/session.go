// Package session runs processes in the sandbox of a bottle. It creates the directory that
// is mounted there, which contains the guest program and the agent's secrets, and starts
// every process through that program. A Session is started for a caller on the host and
// ends with it. A held session is started and held by PID 1: clients join and leave it.
// What comes out of a sandbox is the agent's: sizes are bounded, and a call that waits for
// an answer ends with its context.
package session

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/bot-bottle/bottle/internal/sessionclient"
	proto "github.com/bot-bottle/bottle/internal/sessionproto"
	"github.com/bot-bottle/bottle/provision"
	"github.com/bot-bottle/bottle/runtime"
)

// Config describes a process to run in a bottle.
type Config struct {
	Command  []string
	Env      []provision.Variable // override the bottle's
	Dir      string               // empty: the image's working directory
	User     string               // "name", "uid" or "uid:gid"; empty: the agent's
	Terminal bool
	Width    uint16 // of the terminal, in cells
	Height   uint16
	Stdin    io.Reader // nil: none
	Stdout   io.Writer
	Stderr   io.Writer // not used with a terminal
	// InputEnd, if set, is called with an error of Stdin, by clients of held sessions.
	InputEnd func(error)
	frames   func(proto.Kind, []byte) error // replaces what Client does with output
}

// Session is a process running in a bottle.
type Session struct {
	process
	envFile string
}

// process is a process that PID 1 has started, or the runtime.
type process interface {
	Wait() (int, error)
	Signal(context.Context, syscall.Signal) error
	Resize(ctx context.Context, width, height uint16) error
	Killed() bool
	LimitsReached() []*runtime.LimitError
}

// ErrNotRunning is wrapped if a bottle does not exist or its agent is not running.
var ErrNotRunning = runtime.ErrNotRunning

// Starter starts a process in a bottle, as runtime.Client.Exec and runtime.Task.Exec do.
type Starter func(context.Context, runtime.SessionConfig) (*runtime.Session, error)

// Exec starts a process in a running bottle. The caller must call Wait.
func Exec(ctx context.Context, rt *runtime.Client, name string, cfg Config) (*Session, error) {
	return Start(ctx, rt, name, cfg, func(ctx context.Context, cfg runtime.SessionConfig) (*runtime.Session, error) {
		return rt.Exec(ctx, name, cfg)
	})
}

// Start is Exec with a task that the caller has.
func Start(ctx context.Context, rt *runtime.Client, name string, cfg Config, start Starter) (*Session, error) {
	if len(cfg.Command) == 0 {
		return nil, errors.New("missing command")
	}
	if cfg.Dir != "" && !filepath.IsAbs(cfg.Dir) {
		return nil, fmt.Errorf("working directory %q is not absolute", cfg.Dir)
	}
	guest := GuestDir(rt.Dir(name))
	s := &Session{}
	if cfg.User == "" {
		d, err := startDirect(ctx, rt, name, cfg)
		if err == nil {
			s.process = d
			return s, nil
		}
		if !errors.Is(err, errNotReached) || ctx.Err() != nil {
			return nil, err
		}
	}
	var user *runtime.User
	if cfg.User != "" {
		u, err := rt.User(ctx, name, cfg.User)
		if err != nil {
			return nil, err
		}
		user = &u
	}
	files, err := s.environment(guest, cfg.Env, user)
	if err != nil {
		return nil, err
	}
	rs, err := start(ctx, runtime.SessionConfig{
		Args: guestArgs(files, sessionclient.WorkDir(guest), cfg), User: user, Terminal: cfg.Terminal,
		Env: terminalEnv(cfg), Width: cfg.Width, Height: cfg.Height,
		Stdin: cfg.Stdin, Stdout: cfg.Stdout, Stderr: cfg.Stderr,
	})
	if err != nil {
		return nil, errors.Join(err, s.removeEnv())
	}
	s.process = rs
	return s, nil
}

// environment returns the files, in the sandbox, with the variables of a session. Another
// user than the agent's cannot read the bottle's own file and gets a copy.
func (s *Session) environment(guest string, vars []provision.Variable, user *runtime.User) ([]string, error) {
	bottles := filepath.Join(guest, "env")
	fi, err := os.Stat(bottles)
	if err != nil {
		return nil, fmt.Errorf("read environment: %w: %w", ErrNotRunning, err)
	}
	owner := fi.Sys().(*syscall.Stat_t)
	data := provision.EnvFile(vars)
	var files []string
	switch {
	case user != nil && user.UID != owner.Uid:
		shared, err := os.ReadFile(bottles)
		if err != nil {
			return nil, fmt.Errorf("read environment: %w", err)
		}
		data = append(shared, data...)
		owner.Uid, owner.Gid = user.UID, user.GID
	case fi.Size() > 0:
		files = []string{provision.GuestEnv}
	}
	if len(data) == 0 {
		return files, nil
	}
	inside, err := s.storeEnv(guest, data, int(owner.Uid), int(owner.Gid))
	if err != nil {
		return nil, err
	}
	return append(files, inside), nil
}

// guestArgs returns the arguments that run a command through the guest program. It
// reads variables from files on tmpfs, because the environment of an exec passes through
// a file of the shim. It sets the terminal's size before the command can query it, which
// runsc's shim cannot do. And it changes to the working directory, which the runtime must
// not do (runtime/spec.go).
func guestArgs(files []string, workDir string, cfg Config) []string {
	args := []string{provision.GuestInit, "exec"}
	for _, f := range files {
		args = append(args, "--env-file", f)
	}
	switch {
	case cfg.Dir != "":
		args = append(args, "--dir", cfg.Dir)
	case workDir != "":
		args = append(args, "--workdir", workDir)
	}
	if cfg.Terminal && cfg.Width > 0 && cfg.Height > 0 {
		args = append(args, "--size", fmt.Sprintf("%dx%d", cfg.Width, cfg.Height))
	}
	return append(append(args, "--"), cfg.Command...)
}

// terminalEnv returns the variables that describe the caller's terminal. The guest
// program replaces a TERM that the image does not know.
func terminalEnv(cfg Config) []string {
	var env []string
	for _, name := range []string{"TERM", "COLORTERM"} {
		if value := os.Getenv(name); cfg.Terminal && value != "" {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// storeEnv writes a session's own variables to a file of its user, and returns its path
// in the sandbox.
func (s *Session) storeEnv(guest string, data []byte, uid, gid int) (string, error) {
	name := "env-" + rand.Text()
	s.envFile = filepath.Join(guest, name)
	f := provision.GuestFile{Mode: 0o400, Data: data, Private: true}
	if err := writeFile(s.envFile, f, uid, gid); err != nil {
		return "", fmt.Errorf("store session environment: %w", err)
	}
	return provision.GuestDir + "/" + name, nil
}

func (s *Session) removeEnv() error {
	if s.envFile == "" {
		return nil
	}
	return os.Remove(s.envFile)
}

// Wait waits until the process has ended and its output has been written, and returns
// the exit code: 126 and 127 as in a shell, 128 plus the signal's number after a signal.
func (s *Session) Wait() (int, error) {
	code, err := s.process.Wait()
	if ferr := s.removeEnv(); err == nil && ferr != nil && !errors.Is(ferr, os.ErrNotExist) {
		err = fmt.Errorf("remove session environment: %w", ferr)
	}
	return code, err
}
