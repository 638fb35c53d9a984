package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/cmd/bottle/fastexec"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/nocore"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/session"
)

// execFlags are the flags of the commands that run something in a running bottle.
type execFlags struct {
	env                     envFlags
	tty, noTTY, interactive bool
	dir, user               string
}

func (f *execFlags) register(fs *pflag.FlagSet) {
	f.env.register(fs)
	fs.StringVarP(&f.dir, "workdir", "w", "", "working directory in the bottle")
	fs.StringVarP(&f.user, "user", "u", "", "user in the bottle: NAME or UID, optionally with :GROUP (default: the agent's)")
	fs.BoolVarP(&f.tty, "tty", "t", false, "allocate a terminal (default: if standard input and output are terminals)")
	fs.BoolVarP(&f.noTTY, "no-tty", "T", false, "do not allocate a terminal")
	fs.BoolVarP(&f.interactive, "interactive", "i", true, "forward standard input (always on)")
}

func (a *app) execCommand() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use:     "exec [flags] NAME [--] COMMAND [ARG...]",
		Short:   "Run a command in a running bottle",
		Example: textExecExample,
		Args: func(_ *cobra.Command, args []string) error {
			_, _, err := nameAndCommand(args)
			return err
		},
		RunE: func(_ *cobra.Command, args []string) error {
			name, command, err := nameAndCommand(args)
			if err != nil {
				return err
			}
			return a.exec(name, command, f)
		},
	}
	cmd.Flags().SetInterspersed(false)
	f.register(cmd.Flags())
	return cmd
}

// shell runs the best shell of an image as a login shell.
var shell = []string{"sh", "-c", "command -v bash >/dev/null && exec bash -l; exec sh -l"}

func (a *app) shellCommand() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use:   "shell NAME",
		Short: "Open a shell in a running bottle",
		Args:  oneName,
		RunE:  func(_ *cobra.Command, args []string) error { return a.exec(args[0], shell, f) },
	}
	f.register(cmd.Flags())
	return cmd
}

// exec runs a command in a running bottle and returns its exit code as an exitError.
func (a *app) exec(name string, command []string, f execFlags) error {
	nocore.Disable()
	defer catchBrokenPipes()()
	c := caller.Current()
	files, err := f.env.read(a, c)
	if err != nil {
		return err
	}
	vars, err := plan.ResolveEnv(c, files, f.env.env, func(path string) ([]plan.EnvArg, error) { return a.readPipe(c, path) })
	if err != nil {
		return err
	}
	return a.withEngine(func(e *bottle.Engine) error {
		begun := fastexec.Begun() // with these arguments
		if begun != nil {
			name = begun.Bottle
		} else if name, err = a.resolve(e, name); err != nil {
			return err
		}
		defer a.watchProxy(e, name)()
		cfg := session.Config{Command: command, Env: vars, Dir: f.dir, User: f.user, Terminal: a.wantsTerminal(f.tty, f.noTTY)}
		began := time.Now()
		err = a.attach(func(ctx context.Context, cfg session.Config) (process, error) {
			if begun != nil {
				return e.Sessions().Begun(ctx, name, begun.Process, begun.Before), nil
			}
			return e.Exec(ctx, name, cfg)
		}, cfg, a.showRefusals(e, name))
		if _, ok := a.terminal(); ok && cfg.Terminal {
			// As in run, an unreadable log is not an error.
			if hosts, serr := e.Proxies().Summary(context.WithoutCancel(a.ctx), name, began); serr == nil {
				a.showSessionRefused(name, hosts)
			}
		}
		return err
	})
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
