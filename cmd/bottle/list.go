package main

import (
	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
)

func (a *app) listCommand() *cobra.Command {
	var asJSON, all bool
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls", "ps"},
		Short:   "List running bottles",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.withEngine(func(e *bottle.Engine) error {
				list, err := e.List(a.ctx, all)
				if err != nil {
					return err
				}
				if asJSON {
					return a.printJSON(list)
				}
				return a.printList(list)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "include bottles whose agent does not run")
	return cmd
}
