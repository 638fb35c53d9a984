package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
)

func (a *app) inspectCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "inspect NAME...",
		Short: "Show everything about bottles as JSON",
		Args:  oneOrMoreNames,
		RunE: func(_ *cobra.Command, args []string) error {
			show, err := parseFormat(format)
			if err != nil {
				return err
			}
			list := []bottle.Details{}
			err = a.eachBottle(args, func(e *bottle.Engine, name string) error {
				done := a.busy(textBusyInspectBottle, shownName(name))
				d, err := e.Inspect(a.ctx, name)
				done()
				if err == nil {
					list = append(list, d)
				}
				return err
			})
			if show == nil {
				return errors.Join(a.printJSON(list), err)
			}
			return errors.Join(printEach(a, show, list), err)
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", textFormatFlag)
	return cmd
}
