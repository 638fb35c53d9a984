package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/moby/term"
	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/internal/nocore"
	"github.com/bot-bottle/bottle/session"
)

// defaultDetachKeys are docker's.
const defaultDetachKeys = "ctrl-p,ctrl-q"

func (a *app) attachCommand() *cobra.Command {
	var keys string
	var noStdin bool
	cmd := &cobra.Command{
		Use:   "attach NAME",
		Short: "Rejoin the session of a detached bottle",
		Long:  textAttachLong,
		Args:  oneName,
		RunE: func(_ *cobra.Command, args []string) error {
			nocore.Disable()
			defer catchBrokenPipes()()
			return a.withEngine(func(e *bottle.Engine) error {
				name, err := a.resolve(e, args[0])
				if err != nil {
					return err
				}
				return a.rejoin(e, name, keys, noStdin)
			})
		},
	}
	cmd.Flags().StringVar(&keys, "detach-keys", defaultDetachKeys, textDetachKeys)
	cmd.Flags().BoolVar(&noStdin, "no-stdin", false, "do not forward standard input")
	return cmd
}

func (a *app) rejoin(e *bottle.Engine, name, keys string, noStdin bool) error {
	state, err := e.Sessions().State(a.ctx, name)
	if err != nil {
		return err
	}
	switch {
	case len(state.Limits) > 0:
		return withHint(fmt.Errorf(textSessionKilled, shownName(name), state.Summary()), hintRaiseLimit, state.Limits[0].Limit)
	case state.Killed:
		return withHint(fmt.Errorf(textSessionKilled, shownName(name), state.Summary()), hintSessionKilled, shownName(name))
	case !state.Running():
		return withHint(fmt.Errorf(textSessionEnded, shownName(name), state.Code), hintSessionEnded, shownName(name))
	}
	if _, ok := a.terminal(); state.Terminal && !ok && !noStdin {
		return withHint(fmt.Errorf(textNeedsTerminal, shownName(name)), hintNeedsTerminal, shownName(name))
	}
	defer a.watchProxy(e, name)()
	_, err = a.attachHeld(e, name, keys, session.Config{Terminal: state.Terminal}, noStdin, func(ctx context.Context, cfg session.Config) (*session.Client, error) {
		if err := e.AuditSession(name, "attach", cfg); err != nil {
			return nil, err
		}
		return e.Sessions().Attach(ctx, name, cfg)
	})
	return err
}

// attachHeld connects the caller to a session that PID 1 holds, until it ends or the
// caller leaves it. left reports that it continues: also if the caller's terminal, or what
// reads its output, is gone. err is the session's exit code as an exitError.
func (a *app) attachHeld(e *bottle.Engine, name, keys string, cfg session.Config, noStdin bool,
	start func(context.Context, session.Config) (*session.Client, error),
) (left bool, err error) {
	detachKeys, err := term.ToBytes(keys)
	if err != nil {
		return false, withHint(fmt.Errorf(textBadKeys, keys), hintBadKeys)
	}
	held := &heldProcess{}
	err = a.attach(func(ctx context.Context, cfg session.Config) (process, error) {
		_, onTerminal := a.terminal()
		switch {
		case noStdin:
			cfg.Stdin = nil
		case onTerminal && cfg.Terminal:
			cfg.Stdin = term.NewEscapeProxy(a.stdin, detachKeys)
		}
		cfg.InputEnd = func(err error) {
			if errors.As(err, &term.EscapeError{}) {
				held.detach()
			}
		}
		s, err := start(ctx, cfg)
		if err != nil {
			return nil, err
		}
		held.set(s)
		return held, nil
	}, cfg, a.showRefusals(e, name))
	if held.Client != nil && a.suspended(e, name) {
		return true, nil
	}
	left = held.left(err)
	if left {
		a.note(textDetached, shownName(name), shownName(name))
	}
	return left, a.commandFailure(err)
}

// commandFailure reports a command that could not be run, whose exit code is the result.
func (a *app) commandFailure(err error) error {
	f, ok := errors.AsType[*session.Failure](err)
	if !ok {
		return err
	}
	a.printError(f)
	return exitError(f.Code)
}

// heldProcess is an attached client. SIGHUP detaches it, so that the loss of the terminal
// does not end the session.
type heldProcess struct {
	*session.Client
	mu      sync.Mutex
	leaving bool // before the client was known
}

func (h *heldProcess) set(s *session.Client) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Client = s
	if h.leaving {
		s.Detach()
	}
}

func (h *heldProcess) detach() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.leaving = true
	if h.Client != nil {
		h.Detach()
	}
}

// left reports whether the session continues without the client, whose attachment has
// ended with err.
func (h *heldProcess) left(err error) bool {
	if h.Client == nil || errors.As(err, new(exitError)) {
		return false // it has ended, or was told to
	}
	return h.Continues()
}

func (h *heldProcess) Signal(ctx context.Context, sig syscall.Signal) error {
	if sig == syscall.SIGHUP {
		h.detach()
		return nil
	}
	return h.Client.Signal(ctx, sig)
}
