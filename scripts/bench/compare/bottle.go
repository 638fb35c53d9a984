package compare

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/internal/program"
	"github.com/bot-bottle/bottle/session"
)

// Bottle is the bottle program in a directory with a benchmark's manifest.
type Bottle struct {
	Program, Dir string
	Env          []string // in addition to this process's
}

// NewBottle writes the manifest to a directory of its own. The caller must call Close.
func NewBottle(manifest string) (*Bottle, error) {
	if err := CheckTestHost(); err != nil {
		return nil, err
	}
	program, err := Program()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "bottle-bench-")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "bottle.yaml"), []byte(manifest), 0o600); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return &Bottle{Program: program, Dir: dir}, nil
}

// Command returns a command of the program, which runs in the directory.
func (b *Bottle) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, b.Program, args...)
	cmd.Dir = b.Dir
	cmd.Env = append(os.Environ(), b.Env...)
	return cmd
}

// Do runs a command of the program.
func (b *Bottle) Do(ctx context.Context, args ...string) error {
	out, err := b.Command(ctx, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("bottle %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return err
}

// RunArgs are the arguments of a run of an agent that asks nothing.
func RunArgs(agent string, more ...string) []string {
	return append([]string{"run", agent, "--yes", "--trust", "-T", "--proxy", "builtin"}, more...)
}

// Launch starts a bottle in the background.
func (b *Bottle) Launch(ctx context.Context, agent string) error {
	return b.Do(ctx, RunArgs(agent, "-d")...)
}

// Close removes all bottles of the test host, and the directory.
func (b *Bottle) Close() error {
	return errors.Join(b.Do(context.Background(), "cleanup", "--yes"), os.RemoveAll(b.Dir))
}

// EngineConfig returns the configuration of an engine with the programs that the bottle
// program contains.
func EngineConfig() (cfg bottle.Config, err error) {
	cfg = bottle.ConfigFromEnv(os.Getenv)
	if cfg.Program, err = Program(); err != nil {
		return cfg, err
	}
	if cfg.Guest, err = embedded("guest"); err != nil {
		return cfg, err
	}
	if cfg.ProxyProgram, err = embedded("proxy"); err != nil {
		return cfg, err
	}
	if cfg.Runsc, err = embedded("runsc"); err != nil {
		return cfg, err
	}
	cfg.Programs, err = program.Identity(cfg.Program)
	return cfg, err
}

// embedded opens a program that the bottle binary contains.
func embedded(name string) (func() (io.ReadCloser, error), error) {
	file := filepath.Join("cmd", "bottle", "embedded", name+"-"+runtime.GOARCH)
	if _, err := os.Stat(file); err != nil {
		return nil, fmt.Errorf("find the %s program: %w (make build)", name, err)
	}
	return func() (io.ReadCloser, error) { return os.Open(file) }, nil
}

// FirstExec runs a bottle's first exec to its end.
func FirstExec(ctx context.Context, b *bottle.Bottle) error {
	s, err := b.Exec(ctx, session.Config{Stdout: io.Discard, Stderr: io.Discard})
	if err != nil {
		return err
	}
	code, err := s.Wait()
	if err == nil && code != 0 {
		err = fmt.Errorf("first exec: exit code %d", code)
	}
	return err
}
