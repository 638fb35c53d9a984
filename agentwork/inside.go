package agentwork

import (
	"context"
	"syscall"
	"time"

	"github.com/bot-bottle/bottle/session"
	"github.com/bot-bottle/bottle/worktree"
)

// inside runs commands in a sandbox for package worktree.
type inside func(context.Context, session.Config) (*session.Session, error)

// killTime is how long a command in a bottle may take to end after SIGKILL.
const killTime = 5 * time.Second

// Run implements worktree.Inside.
func (exec inside) Run(ctx context.Context, cmd worktree.Command) (int, error) {
	// The start is not interrupted: containerd would complete it without us.
	s, err := exec(context.WithoutCancel(ctx), session.Config{
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
