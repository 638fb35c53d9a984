package main

import (
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
)

func (a *app) execCommand() *cobra.Command {
	var env []string
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
			vars, err := execEnv(env)
			if err != nil {
				return err
			}
			return a.withEngine(func(e *bottle.Engine) error {
				name, err := e.Resolve(a.ctx, args[0])
				if err != nil {
					return err
				}
				return a.talk(func(cfg bottle.SessionConfig) (*bottle.Session, error) {
					return e.Exec(a.ctx, name, cfg)
				}, bottle.SessionConfig{Command: args[1:], Env: vars, Dir: dir, Terminal: a.wantsTerminal(tty, noTTY)})
			})
		},
	}
	fs := cmd.Flags()
	fs.SetInterspersed(false)
	fs.StringArrayVarP(&env, "env", "e", nil, "set a variable (NAME=VALUE) or forward one (NAME)")
	fs.StringVarP(&dir, "workdir", "w", "", "working directory inside")
	fs.BoolVarP(&tty, "tty", "t", false, "give the command a terminal (default: when standard input and output are one)")
	fs.BoolVarP(&noTTY, "no-tty", "T", false, "give the command no terminal")
	fs.BoolVarP(&interactive, "interactive", "i", true, "pass standard input on (always so)")
	return cmd
}

// execEnv takes variables as docker does: NAME=VALUE, or NAME from here.
func execEnv(list []string) ([]bottle.EnvVar, error) {
	var out []bottle.EnvVar
	for _, kv := range list {
		name, value, literal := strings.Cut(kv, "=")
		if !literal {
			v, ok := os.LookupEnv(name)
			if !ok {
				return nil, usage(textEnvUnset, name)
			}
			value = v
		}
		if !bottle.ValidEnvName(name) {
			return nil, usage(textEnvName, name)
		}
		out = append(out, bottle.EnvVar{Name: name, Source: bottle.SourceForwarded, Secret: bottle.NewSecret(value)})
	}
	return out, nil
}
