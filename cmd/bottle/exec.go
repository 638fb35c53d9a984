package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
)

func (a *app) execCommand() *cobra.Command {
	var env envFlags
	var tty, noTTY, interactive bool
	var dir string
	cmd := &cobra.Command{
		Use:   "exec NAME [flags] [--] COMMAND [ARG...]",
		Short: "Run a command in a bottle that runs",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usage(textExecArgs)
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			keepSecrets()
			c := caller()
			files, err := env.read(a)
			if err != nil {
				return err
			}
			vars, err := bottle.ResolveEnv(c, files, env.env)
			if err != nil {
				return err
			}
			return a.withEngine(func(e *bottle.Engine) error {
				name, err := e.Resolve(a.ctx, args[0])
				if err != nil {
					return err
				}
				defer a.watchProxy(e, name)()
				cfg := bottle.SessionConfig{Command: args[1:], Env: vars, Dir: dir, Terminal: a.wantsTerminal(tty, noTTY)}
				began := time.Now()
				err = a.talk(func(ctx context.Context, cfg bottle.SessionConfig) (*bottle.Session, error) {
					return e.Exec(ctx, name, cfg)
				}, cfg, a.tellRefusals(e, name))
				if _, ok := a.terminal(); ok && cfg.Terminal {
					// The log is a help, not a duty, as at the end of run.
					if hosts, serr := e.EgressSummary(context.WithoutCancel(a.ctx), name, began); serr == nil {
						a.showRefused(name, hosts)
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
