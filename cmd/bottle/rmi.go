package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
)

func (a *app) rmiCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rmi [flags] IMAGE...",
		Short: "Remove images and free the space that only they use",
		Long:  textRmiLong,
		Args:  someImages,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withEngine(func(e *bottle.Engine) error { return a.rmi(e, args, force) })
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also remove an image that a bottle uses; the bottle keeps running")
	return cmd
}

// rmi removes each image it can and returns the errors of all others.
func (a *app) rmi(e *bottle.Engine, names []string, force bool) error {
	var errs []error
	for _, name := range names {
		done := a.busy(textBusyRemove, visible(name))
		ref, err := e.Images().Remove(a.ctx, name, force)
		done()
		if err == nil {
			err = a.printRef(ref)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func someImages(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return withHint(errors.New(textNoImage), hintRmi)
	}
	return nil
}
