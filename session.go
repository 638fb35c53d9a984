package bottle

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/bot-bottle/bottle/provision"

	"github.com/bot-bottle/bottle/runtime"
)

// SessionConfig describes a process to run in a bottle.
type SessionConfig struct {
	Command  []string
	Env      []provision.Variable // over the bottle's
	Dir      string               // empty: the image's working directory
	Terminal bool
	Width    uint16 // of the terminal, in cells
	Height   uint16
	Stdin    io.Reader // nil: none
	Stdout   io.Writer
	Stderr   io.Writer // not used with a terminal
}

// Session is a process that runs in a bottle.
type Session struct {
	*runtime.Session
	envFile string
}

// ErrNotRunning is wrapped when a bottle is not there or has no running agent.
var ErrNotRunning = runtime.ErrNotRunning

// Exec starts a process in a running bottle. Its end is told by Wait, which
// must be called.
func (e *Engine) Exec(ctx context.Context, name string, cfg SessionConfig) (*Session, error) {
	return e.exec(ctx, name, cfg, func(ctx context.Context, cfg runtime.SessionConfig) (*runtime.Session, error) {
		return e.rt.Exec(ctx, name, cfg)
	})
}

// exec prepares a session and has start start it.
func (e *Engine) exec(ctx context.Context, name string, cfg SessionConfig,
	start func(context.Context, runtime.SessionConfig) (*runtime.Session, error),
) (*Session, error) {
	if len(cfg.Command) == 0 {
		return nil, errors.New("no command to run")
	}
	if cfg.Dir != "" && !filepath.IsAbs(cfg.Dir) {
		return nil, fmt.Errorf("the working directory %q is not absolute", cfg.Dir)
	}
	guest := filepath.Join(e.dir(name), "guest")
	s := &Session{}
	files := []string{provision.GuestEnv}
	if len(cfg.Env) > 0 {
		inside, err := s.storeEnv(guest, cfg.Env)
		if err != nil {
			return nil, err
		}
		files = append(files, inside)
	} else if empty(filepath.Join(guest, "env")) {
		files = nil
	}
	rs, err := start(ctx, runtime.SessionConfig{
		Args: guestArgs(files, workDir(guest), cfg), Terminal: cfg.Terminal,
		Env: terminalEnv(cfg), Width: cfg.Width, Height: cfg.Height,
		Stdin: cfg.Stdin, Stdout: cfg.Stdout, Stderr: cfg.Stderr,
	})
	if err != nil {
		return nil, errors.Join(err, s.forget())
	}
	s.Session = rs
	return s, nil
}

// guestArgs runs a command by way of bottle's program inside, which reads
// variables from files that are on tmpfs: an exec's own environment would pass
// through a file of the shim's. It sets the terminal's size, too, before the
// command can ask for it: runsc's shim cannot. And it goes to the folder to begin
// in, as the runtime must not (runtime/spec.go).
func guestArgs(files []string, workDir string, cfg SessionConfig) []string {
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

// workDir is empty for a bottle that another version has launched.
func workDir(guest string) string {
	data, _ := os.ReadFile(filepath.Join(guest, provision.WorkDirFile))
	return string(data)
}

// terminalEnv returns the variables that describe the caller's terminal. The guest
// program replaces a TERM that the image does not know.
func terminalEnv(cfg SessionConfig) []string {
	var env []string
	for _, name := range []string{"TERM", "COLORTERM"} {
		if value := os.Getenv(name); cfg.Terminal && value != "" {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// storeEnv keeps a session's own variables beside the bottle's, owned as they
// are, and returns the file's path inside.
func (s *Session) storeEnv(guest string, vars []provision.Variable) (string, error) {
	fi, err := os.Stat(filepath.Join(guest, "env"))
	if err != nil {
		return "", fmt.Errorf("store the session's environment: %w: %w", ErrNotRunning, err)
	}
	owner := fi.Sys().(*syscall.Stat_t)
	name := "env-" + rand.Text()
	s.envFile = filepath.Join(guest, name)
	f := provision.GuestFile{Mode: 0o400, Data: provision.EnvFile(vars), Private: true}
	if err := writeGuestFile(s.envFile, f, int(owner.Uid), int(owner.Gid)); err != nil {
		return "", fmt.Errorf("store the session's environment: %w", err)
	}
	return provision.GuestDir + "/" + name, nil
}

func (s *Session) forget() error {
	if s.envFile == "" {
		return nil
	}
	return os.Remove(s.envFile)
}

// Wait returns the exit code when the process has ended and its output has been
// written: 126 and 127 as a shell has them, 128 and the signal's number after a
// signal.
func (s *Session) Wait() (int, error) {
	code, err := s.Session.Wait()
	if ferr := s.forget(); err == nil && ferr != nil && !errors.Is(ferr, os.ErrNotExist) {
		err = fmt.Errorf("remove the session's environment: %w", ferr)
	}
	return code, err
}

func empty(file string) bool {
	fi, err := os.Stat(file)
	return err == nil && fi.Size() == 0
}

// Exec runs the agent's command, or another, in this bottle.
func (b *Bottle) Exec(ctx context.Context, cfg SessionConfig) (*Session, error) {
	if len(cfg.Command) == 0 {
		cfg.Command = b.plan.Command
	}
	defer b.Timings.begin("session")()
	return b.e.exec(ctx, b.Name, cfg, b.agent.Exec)
}
