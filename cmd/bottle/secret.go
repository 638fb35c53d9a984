package main

import (
	"errors"
	"io"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/audit"
	"github.com/bot-bottle/bottle/internal/nocore"
	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/policy"
)

func (a *app) secretCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "secret COMMAND",
		Short: "Manage the injected secrets of a running bottle",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(&cobra.Command{
		Use:     "set NAME VARIABLE",
		Short:   "Replace an injected secret of a running bottle",
		Long:    textSecretLong,
		Example: textSecretExample,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return withHint(errors.New(textSecretArgs), "bottle secret set NAME VARIABLE")
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			nocore.Disable()
			return a.withEngine(func(e *bottle.Engine) error {
				name, err := a.resolve(e, args[0])
				if err != nil {
					return err
				}
				value, err := a.readNewSecret(args[1])
				if err != nil {
					return err
				}
				return a.setSecret(e, name, args[1], value)
			})
		},
	})
	return cmd
}

// readNewSecret asks for a value without echo, or reads standard input if that is not a
// terminal.
func (a *app) readNewSecret(variable string) (secret.Value, error) {
	if a.inputIsTerminal() {
		line, err := a.readSecret(variable)
		return secret.New(line), err
	}
	text, err := a.interruptibly(0, func() (string, error) {
		data, err := io.ReadAll(io.LimitReader(a.stdin, plan.MaxVariable+2))
		return string(data), err
	})
	if err != nil {
		return secret.Value{}, err
	}
	value, err := plan.OneValue("standard input", []byte(text))
	return secret.New(value), err
}

// setSecret replaces a secret. That is written to the audit log before, and again if it
// has failed.
func (a *app) setSecret(e *bottle.Engine, name, variable string, value secret.Value) error {
	event := audit.Event{Kind: audit.SecretUse, Bottle: name, Secret: variable, Source: policy.SecretCommandLine}
	if err := a.auditLog().Write(event); err != nil {
		return err
	}
	done := a.busy(textBusySecret, shownName(name))
	err := e.Proxies().SetSecret(a.ctx, name, variable, policy.SecretCommandLine, value)
	done()
	if err != nil {
		event.Error = err.Error()
		return errors.Join(err, a.auditLog().Write(event))
	}
	a.note(textSecretSet, variable, name)
	return nil
}
