package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/images/supply"
	"github.com/bot-bottle/bottle/internal/caller"
)

func (a *app) pullCommand() *cobra.Command {
	return a.registryCommand(&cobra.Command{
		Use:   "pull IMAGE",
		Short: "Pull an image from its registry into containerd's store",
		Long:  textPullLong,
	}, (*supply.Images).Pull)
}

func (a *app) pushCommand() *cobra.Command {
	return a.registryCommand(&cobra.Command{
		Use:   "push IMAGE",
		Short: "Push an image from containerd's store to its registry",
		Long:  textPushLong,
	}, (*supply.Images).Push)
}

// registryCommand adds flags and the action to a command that transfers one image.
func (a *app) registryCommand(cmd *cobra.Command, transfer func(*supply.Images, context.Context, string, caller.Caller) (string, error)) *cobra.Command {
	var quiet bool
	cmd.Args = oneImage
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing but errors")
	cmd.Flags().StringVar(&a.hostsDir, "hosts-dir", "", textHostsDir)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		a.quiet = quiet
		return a.withEngine(func(e *bottle.Engine) error {
			done := a.busy(textBusyRegistry, visible(args[0])) // until layers are transferred
			ref, err := transfer(e.Images(), a.ctx, args[0], caller.Current())
			done()
			a.endProgress()
			if err != nil || quiet {
				return err
			}
			return a.printRef(ref)
		})
	}
	return cmd
}

func oneImage(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return withHint(errors.New(textOneImage), hintOneImage, cmd.CommandPath())
	}
	return nil
}
