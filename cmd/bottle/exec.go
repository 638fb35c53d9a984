package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/plan"
)

func (a *app) execCommand() *cobra.Command {
	var env envFlags
	var tty, noTTY, interactive bool
	var dir string
	cmd := &cobra.Command{
		Use:   "exec [flags] NAME [--] COMMAND [ARG...]",
		Short: "Run a command in a running bottle",
		Args: func(_ *cobra.Command, args []string) error {
			_, _, err := nameAndCommand(args)
			return err
		},
		RunE: func(_ *cobra.Command, args []string) error {
			disableCoreDumps()
			defer catchBrokenPipes()()
			name, command, err := nameAndCommand(args)
			if err != nil {
				return err
			}
			c := caller.Current()
			files, err := env.read(a, c)
			if err != nil {
				return err
			}
			vars, err := plan.ResolveEnv(c, files, env.env, func(path string) ([]plan.EnvArg, error) { return a.readPipe(c, path) })
			if err != nil {
				return err
			}
			return a.withEngine(func(e *bottle.Engine) error {
				name, err := e.Resolve(a.ctx, name)
				if err != nil {
					return err
				}
				defer a.watchProxy(e, name)()
				cfg := bottle.SessionConfig{Command: command, Env: vars, Dir: dir, Terminal: a.wantsTerminal(tty, noTTY)}
				began := time.Now()
				err = a.attach(func(ctx context.Context, cfg bottle.SessionConfig) (*bottle.Session, error) {
					return e.Exec(ctx, name, cfg)
				}, cfg, a.showRefusals(e, name))
				if _, ok := a.terminal(); ok && cfg.Terminal {
					// As in run, an unreadable log is not an error.
					if hosts, serr := e.EgressSummary(context.WithoutCancel(a.ctx), name, began); serr == nil {
						a.showSessionRefused(name, hosts)
					}
				}
				return err
			})
		},
	}
	fs := cmd.Flags()
	fs.SetInterspersed(false)
	env.register(fs)
	fs.StringVarP(&dir, "workdir", "w", "", "working directory in the bottle")
	fs.BoolVarP(&tty, "tty", "t", false, "allocate a terminal (default: if standard input and output are terminals)")
	fs.BoolVarP(&noTTY, "no-tty", "T", false, "do not allocate a terminal")
	fs.BoolVarP(&interactive, "interactive", "i", true, "forward standard input (always on)")
	return cmd
}

// nameAndCommand splits arguments into a bottle's name and a command, with an
// optional "--" between them. A flag after the name is bottle's, in the wrong place.
func nameAndCommand(args []string) (name string, command []string, err error) {
	switch {
	case len(args) > 2 && args[1] == "--":
		return args[0], args[2:], nil
	case len(args) < 2 || args[1] == "--":
		return "", nil, withHint(errors.New(textExecArgs), hintExec)
	case strings.HasPrefix(args[1], "-"):
		return "", nil, withHint(fmt.Errorf(textExecFlag, args[1]), hintExecFlag, args[1], args[0])
	}
	return args[0], args[1:], nil
}
