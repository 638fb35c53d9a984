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
	return worktree.Await(ctx, s.Wait, func(ended <-chan struct{}) {
		kill, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTime)
		defer cancel()
		_ = s.Signal(kill, syscall.SIGKILL) // an error means that it has ended
		select {
		case <-ended:
		case <-kill.Done():
		}
	})
}
