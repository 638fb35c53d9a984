package main

import (
	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
)

func (a *app) cleanupCommand() *cobra.Command {
	var yes, noInput, dryRun, asJSON bool
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove every bottle, and what crashed ones left, after showing it",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.withEngine(func(e *bottle.Engine) error {
				remains, err := e.Survey(a.ctx)
				if err != nil {
					return err
				}
				if asJSON {
					if err := a.printJSON(remains); err != nil {
						return err
					}
				} else {
					a.printRemains(remains)
				}
				if len(remains) == 0 || dryRun {
					return nil
				}
				if !yes {
					if noInput {
						return usage(textNoInput)
					}
					if err := a.confirm(textRemoveAll); err != nil {
						return err
					}
				}
				return e.Clean(a.ctx, remains)
			})
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&yes, "yes", "y", false, "remove without asking")
	fs.BoolVar(&noInput, "no-input", false, "fail instead of asking")
	fs.BoolVar(&dryRun, "dry-run", false, "show only")
	fs.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
