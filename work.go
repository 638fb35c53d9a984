package bottle

import (
	"context"
	"errors"
	"fmt"
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

// CopyOut copies a file or a directory of a running bottle to the host, as docker cp
// does: see worktree.Work.CopyOut.
func (e *Engine) CopyOut(ctx context.Context, name, path, dest string, o WorkOptions) error {
	return e.withWork(ctx, name, o, func(w *worktree.Work) error { return w.CopyOut(ctx, path, dest) })
}

// CopyIn copies a file or a directory of the host into a running bottle.
func (e *Engine) CopyIn(ctx context.Context, name, source, path string, o WorkOptions) error {
	return e.withWork(ctx, name, o, func(w *worktree.Work) error { return w.CopyIn(ctx, source, path) })
}

// withWork calls fn with access to a bottle.
func (e *Engine) withWork(ctx context.Context, name string, o WorkOptions, fn func(*worktree.Work) error) error {
	running, err := e.Running(ctx, name)
	if err != nil {
		return err
	}
	if !running {
		return &hint.Error{Err: fmt.Errorf("%w: %s", ErrNotRunning, name), Hint: "bottle list shows the running bottles"}
	}
	inside := execInside(func(ctx context.Context, cfg SessionConfig) (*Session, error) { return e.Exec(ctx, name, cfg) })
	return workHint(fn(&worktree.Work{Inside: inside, Caller: o.Caller, Limits: o.Limits, Notice: o.Notice}))
}

func workHint(err error) error {
	if hint.Of(err) == "" && errors.Is(err, worktree.ErrTooLarge) {
		return &hint.Error{Err: err, Hint: "raise the limit with --max-size, or copy less"}
	}
	return err
}
