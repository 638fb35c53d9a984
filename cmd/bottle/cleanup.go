package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
)

func (a *app) cleanupCommand() *cobra.Command {
	var yes, noInput, dryRun, asJSON bool
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove all bottles and the remains of crashed ones, after confirmation",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			defer catchBrokenPipes()()
			return a.withEngine(func(e *bottle.Engine) error {
				remains, err := e.FindLeftovers(a.ctx)
				if err != nil {
					return err
				}
				if asJSON {
					if err := a.printJSON(remains); err != nil {
						return err
					}
				} else {
					a.printLeftovers(remains)
				}
				if dryRun {
					return nil
				}
				if !yes && len(remains) > 0 {
					if noInput {
						return withHint(errors.New(textConfirm), hintConfirm)
					}
					if err := a.confirm(textRemoveAll); err != nil {
						return err
					}
				}
				return e.RemoveLeftovers(a.ctx, remains)
			})
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&yes, "yes", "y", false, "remove without confirmation")
	fs.BoolVar(&noInput, "no-input", false, "fail instead of asking")
	fs.BoolVar(&dryRun, "dry-run", false, "show only")
	fs.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
