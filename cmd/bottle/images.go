package main

import (
	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
)

func (a *app) imagesCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "images",
		Short: "List the images in containerd's store",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.withEngine(func(e *bottle.Engine) error {
				done := a.busy(textBusyImages)
				list, err := e.Images().List(a.ctx)
				done()
				if err != nil {
					return err
				}
				if asJSON {
					return a.printJSON(list)
				}
				return a.printImages(list)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
