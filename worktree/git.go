package worktree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/caller"
)

// git runs the host's git as the user, in one directory.
type git struct {
	program string
	caller  caller.Caller
	dir     string
	config  []string // further NAME=VALUE
	env     []string // further variables
}

// ErrNoGit means that the host has no git.
var ErrNoGit = errors.New("git is not installed on this host")

func newGit(c caller.Caller, dir string) (*git, error) {
	program, err := exec.LookPath("git")
	if errors.Is(err, exec.ErrNotFound) {
		return nil, ErrNoGit
	}
	if err != nil {
		return nil, fmt.Errorf("find git: %w", err)
	}
	return &git{program: program, caller: c, dir: dir}, nil
}

// in returns git for another directory.
func (g *git) in(dir string) *git {
	other := *g
	other.dir = dir
	return &other
}

// safeConfig overrides what in a repository's or the user's configuration starts programs
// or opens connections (git-config(1)).
var safeConfig = []string{
	"core.hooksPath=/dev/null", "core.fsmonitor=false", "core.pager=cat", "core.askPass=", "credential.helper=",
	"gc.auto=0", "maintenance.auto=false", "submodule.recurse=false", "fetch.recurseSubmodules=false",
	"fetch.fsckObjects=true", "transfer.fsckObjects=true", "core.bigFileThreshold=32m", "pack.threads=2", "advice.detachedHead=false",
}

// Limits of one git process, which may read an agent's objects: private memory, in bytes,
// and processor time, in seconds.
const (
	gitMemory = 2 << 30
	gitCPU    = 1200
)

// gitTime bounds the questions that git answers without reading an agent's data.
const gitTime = 2 * time.Minute

// gitError is a failure of git.
type gitError struct {
	args   []string
	stderr string
	err    error
}

func (e *gitError) Error() string {
	line := strings.TrimSpace(e.stderr)
	line, _, _ = strings.Cut(line, "\n")
	line = strings.TrimPrefix(strings.TrimPrefix(line, "fatal: "), "error: ")
	if line == "" {
		line = e.err.Error()
	}
	return fmt.Sprintf("git %s: %.400s", e.args[0], line)
}

func (e *gitError) Unwrap() error { return e.err }

// exitCode returns the exit code of git, or -1.
func exitCode(err error) int {
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return e.ExitCode()
	}
	return -1
}

// environ is the environment of git: nothing of bottle's own, which contains secrets and
// could contain GIT_DIR.
func (g *git) environ() []string {
	env := []string{
		"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + g.caller.Home, "LC_ALL=C", "GIT_TERMINAL_PROMPT=0",
		"GIT_OPTIONAL_LOCKS=0", "GIT_NO_LAZY_FETCH=1", "GIT_PAGER=cat", "GIT_EDITOR=false", "GIT_ASKPASS=",
		// Overrides what a repository's configuration allows. Only a fetch from the
		// quarantine uses a protocol at all.
		"GIT_ALLOW_PROTOCOL=file",
	}
	if g.caller.Getenv != nil {
		if dir, ok := g.caller.Getenv("XDG_CONFIG_HOME"); ok {
			env = append(env, "XDG_CONFIG_HOME="+dir)
		}
	}
	return append(env, g.env...)
}

// inTemp returns git for a new directory below the system's directory for temporary files,
// where it must not look for a repository above.
func (g *git) inTemp(dir string) *git {
	other := g.in(dir)
	other.env = append(other.env, "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir))
	return other
}

func (g *git) command(ctx context.Context, args ...string) *exec.Cmd {
	all := []string{"--no-pager"}
	for _, c := range append(append([]string{}, safeConfig...), g.config...) {
		all = append(all, "-c", c)
	}
	cmd := exec.CommandContext(ctx, g.program, append(all, args...)...)
	cmd.Dir = g.dir
	cmd.Env = g.environ()
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	if c := g.caller; os.Geteuid() == 0 && c.UID != 0 {
		cred := &syscall.Credential{Uid: uint32(c.UID), Gid: uint32(c.GID)}
		for _, id := range c.Groups {
			cred.Groups = append(cred.Groups, uint32(id))
		}
		cmd.SysProcAttr.Credential = cred
	}
	return cmd
}

// run runs git with limited resources.
func (g *git) run(ctx context.Context, stdin io.Reader, stdout io.Writer, args ...string) error {
	cmd := g.command(ctx, args...)
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = stdout, &capped{w: &stderr, left: 16 << 10}
	var in io.WriteCloser
	if stdin != nil {
		var err error
		if in, err = cmd.StdinPipe(); err != nil {
			return err
		}
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run git: %w", err)
	}
	// Set before git gets any input.
	_ = unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_DATA, &unix.Rlimit{Cur: gitMemory, Max: gitMemory}, nil)
	_ = unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_CPU, &unix.Rlimit{Cur: gitCPU, Max: gitCPU}, nil)
	var inErr error
	if in != nil {
		_, inErr = io.Copy(in, stdin)
		if errors.Is(inErr, syscall.EPIPE) {
			inErr = nil // git has ended and says why
		}
		if inErr != nil {
			_ = cmd.Cancel() // an incomplete input must not look like a complete one
		}
		_ = in.Close()
	}
	err := cmd.Wait()
	switch {
	case inErr != nil:
		return inErr
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return &gitError{args, stderr.String(), err}
	}
	return nil
}

// output returns git's standard output.
func (g *git) output(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, gitTime)
	defer cancel()
	var out bytes.Buffer
	err := g.run(ctx, nil, &out, args...)
	return out.Bytes(), err
}

// line returns git's output without the final line break.
func (g *git) line(ctx context.Context, args ...string) (string, error) {
	out, err := g.output(ctx, args...)
	return strings.TrimSuffix(string(out), "\n"), err
}

// capped discards what exceeds its limit.
type capped struct {
	w    io.Writer
	left int
}

func (c *capped) Write(p []byte) (int, error) {
	n := min(c.left, len(p))
	c.left -= n
	if _, err := c.w.Write(p[:n]); err != nil {
		return 0, err
	}
	return len(p), nil
}
