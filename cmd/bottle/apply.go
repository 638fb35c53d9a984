package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/agentwork"
)

func (a *app) applyCommand() *cobra.Command {
	var size sizeFlag
	var dryRun bool
	cmd := &cobra.Command{
		Use:     "apply NAME",
		Short:   "Change your files as an agent has changed its copy",
		Long:    textApplyLong,
		Example: textApplyExample,
		Args:    oneBottle("apply"),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withBottle(args[0], func(e *bottle.Engine, name string) error {
				return a.apply(e, name, dryRun, a.workOptions(size))
			})
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show what would be changed and stop")
	size.register(cmd)
	return cmd
}

// apply applies an agent's changes and lists them.
func (a *app) apply(e *bottle.Engine, name string, dryRun bool, o agentwork.Options) error {
	done := a.busy(textBusyApply, shownName(name))
	changes, err := e.Work().Apply(a.ctx, name, dryRun, o)
	done()
	if err != nil {
		return err
	}
	return a.printChanges(changes)
}

// printChanges prints one line for each file, as git status does.
func (a *app) printChanges(changes []agentwork.Change) error {
	if len(changes) == 0 {
		a.note(textNothingApplied)
	}
	for _, c := range changes {
		if _, err := fmt.Fprintf(a.stdout, "%s %s\n", c.Status(), visible(c.Name)); err != nil {
			return err
		}
	}
	return nil
}
