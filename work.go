package bottle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/worktree"
)

type (
	// WorkLimits bound what an agent can make the host store, read and wait for when its
	// work is brought back.
	WorkLimits = worktree.Limits
	// WorkChange is a file that an agent has changed.
	WorkChange = worktree.Change
	// FetchedWork is what was fetched from one repository.
	FetchedWork = worktree.Fetched
	// WorkSummary counts what an agent has done.
	WorkSummary = worktree.Summary
)

// DefaultWorkLimits are the defaults of WorkLimits.
var DefaultWorkLimits = worktree.DefaultLimits

// execInside runs commands in a sandbox for package worktree.
type execInside func(context.Context, SessionConfig) (*Session, error)

// killTime is how long a command in a bottle may take to end after SIGKILL.
const killTime = 5 * time.Second

// Run implements worktree.Inside.
func (exec execInside) Run(ctx context.Context, cmd worktree.Command) (int, error) {
	// The start is not interrupted: containerd would complete it without us.
	s, err := exec(context.WithoutCancel(ctx), SessionConfig{
		Command: cmd.Args, Dir: "/", Stdin: cmd.Stdin, Stdout: cmd.Stdout, Stderr: cmd.Stderr,
	})
	if err != nil {
		return 0, err
	}
	type result struct {
		code int
		err  error
	}
	ended := make(chan result, 1)
	go func() {
		code, err := s.Wait()
		ended <- result{code, err}
	}()
	select {
	case r := <-ended:
		return r.code, r.err
	case <-ctx.Done():
	}
	kill, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTime)
	defer cancel()
	_ = s.Signal(kill, syscall.SIGKILL) // an error means that it has ended
	select {
	case <-ended:
	case <-kill.Done():
	}
	return 0, context.Cause(ctx)
}

// WorkOptions are the options of the functions that exchange files with a bottle.
type WorkOptions struct {
	Caller caller.Caller // whose rights are used on the host
	Limits WorkLimits
	Notice func(string) // receives sentences about what is left out; may be nil
}

// CopyOut copies a file or a directory of a bottle to the host, as docker cp does: see
// worktree.Work.CopyOut.
func (e *Engine) CopyOut(ctx context.Context, name, path, dest string, o WorkOptions) error {
	return e.withWork(ctx, name, o, func(w *worktree.Work) error { return w.CopyOut(ctx, path, dest) })
}

// CopyIn copies a file or a directory of the host into a bottle.
func (e *Engine) CopyIn(ctx context.Context, name, source, path string, o WorkOptions) error {
	return e.withWork(ctx, name, o, func(w *worktree.Work) error { return w.CopyIn(ctx, source, path) })
}

// DiffWork writes what the agent has changed in its copy of a directory: see
// worktree.Work.Diff.
func (e *Engine) DiffWork(ctx context.Context, name string, out io.Writer, stat bool, o WorkOptions) error {
	return e.withCopy(ctx, name, o, func(w *worktree.Work) error {
		_, err := w.Diff(ctx, out, stat, false)
		return err
	})
}

// ApplyWork changes the user's files as the agent has changed its copy: see
// worktree.Work.Apply.
func (e *Engine) ApplyWork(ctx context.Context, name string, dryRun bool, o WorkOptions) (changes []WorkChange, err error) {
	err = e.withCopy(ctx, name, o, func(w *worktree.Work) error {
		changes, err = w.Apply(ctx, dryRun)
		return err
	})
	return changes, err
}

// FetchWork brings the agent's commits, and its uncommitted work as one more commit, to a
// branch of the user's repository: see worktree.Work.Fetch.
func (e *Engine) FetchWork(ctx context.Context, name, branch string, o WorkOptions) (list []FetchedWork, err error) {
	err = e.withCopy(ctx, name, o, func(w *worktree.Work) error {
		list, err = w.Fetch(ctx, name, branch)
		return err
	})
	return list, err
}

// SummarizeWork counts the agent's commits and changed files.
func (e *Engine) SummarizeWork(ctx context.Context, name string, o WorkOptions) (s WorkSummary, err error) {
	err = e.withCopy(ctx, name, o, func(w *worktree.Work) error {
		s, err = w.Summary(ctx)
		return err
	})
	return s, err
}

// withCopy calls fn with access to a bottle that has a copy of a directory.
func (e *Engine) withCopy(ctx context.Context, name string, o WorkOptions, fn func(*worktree.Work) error) error {
	base, err := worktree.Load(e.stateDir(name))
	if errors.Is(err, worktree.ErrNoBase) {
		return &hint.Error{Err: fmt.Errorf("%s %w", name, err), Hint: "run an agent with --cwd, or copy single files with bottle cp"}
	}
	if err != nil {
		return err
	}
	return e.withWork(ctx, name, o, func(w *worktree.Work) error {
		w.Base = base
		return fn(w)
	})
}

// withWork calls fn with access to the files of a running bottle.
func (e *Engine) withWork(ctx context.Context, name string, o WorkOptions, fn func(*worktree.Work) error) error {
	running, err := e.Running(ctx, name)
	if err != nil {
		return err
	}
	inside := execInside(func(ctx context.Context, cfg SessionConfig) (*Session, error) { return e.Exec(ctx, name, cfg) })
	if !running {
		return &hint.Error{Err: fmt.Errorf("%w: %s", ErrNotRunning, name), Hint: "bottle list shows the running bottles"}
	}
	return workHint(fn(&worktree.Work{Inside: inside, Caller: o.Caller, Limits: o.Limits, Notice: o.Notice}))
}

func workHint(err error) error {
	if hint.Of(err) == "" && errors.Is(err, worktree.ErrTooLarge) {
		return &hint.Error{Err: err, Hint: "raise the limit with --max-size, or copy less"}
	}
	return err
}
