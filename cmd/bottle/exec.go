package main

import (
	"context"
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
		Short: "Run a command in a bottle that runs",
		Args: func(_ *cobra.Command, args []string) error {
			_, _, err := nameAndCommand(args)
			return err
		},
		RunE: func(_ *cobra.Command, args []string) error {
			keepSecrets()
			name, command, err := nameAndCommand(args)
			if err != nil {
				return err
			}
			c := caller.Current()
			files, err := env.read(a)
			if err != nil {
				return err
			}
			vars, err := plan.ResolveEnv(c, files, env.env)
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
				err = a.talk(func(ctx context.Context, cfg bottle.SessionConfig) (*bottle.Session, error) {
					return e.Exec(ctx, name, cfg)
				}, cfg, a.tellRefusals(e, name))
				if _, ok := a.terminal(); ok && cfg.Terminal {
					// The log is a help, not a duty, as at the end of run.
					if hosts, serr := e.EgressSummary(context.WithoutCancel(a.ctx), name, began); serr == nil {
						a.showRefusedHere(name, hosts)
					}
				}
				return err
			})
		},
	}
	fs := cmd.Flags()
	fs.SetInterspersed(false)
	env.register(fs)
	fs.StringVarP(&dir, "workdir", "w", "", "working directory inside")
	fs.BoolVarP(&tty, "tty", "t", false, "give the command a terminal (default: when standard input and output are one)")
	fs.BoolVarP(&noTTY, "no-tty", "T", false, "give the command no terminal")
	fs.BoolVarP(&interactive, "interactive", "i", true, "pass standard input on (always so)")
	return cmd
}

// nameAndCommand takes a bottle's name and, behind it or behind it and "--", a
// command. A flag there is one of bottle's in the wrong place.
func nameAndCommand(args []string) (name string, command []string, err error) {
	switch {
	case len(args) > 2 && args[1] == "--":
		return args[0], args[2:], nil
	case len(args) < 2 || args[1] == "--":
		return "", nil, usage(textExecArgs)
	case strings.HasPrefix(args[1], "-"):
		return "", nil, usage(textExecFlag, args[1], args[0])
	}
	return args[0], args[1:], nil
}
