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
		Short: "Remove images, and free what only they need",
		Long:  textRmiLong,
		Args:  someImages,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withEngine(func(e *bottle.Engine) error { return a.rmi(e, args, force) })
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also one that a bottle uses: the bottle goes on")
	return cmd
}

// rmi removes what can be removed, and tells of all that cannot.
func (a *app) rmi(e *bottle.Engine, names []string, force bool) error {
	var errs []error
	for _, name := range names {
		ref, err := e.RemoveImage(a.ctx, name, force)
		if err == nil {
			err = a.printRef(ref)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func someImages(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usage(textNoImage)
	}
	return nil
}
