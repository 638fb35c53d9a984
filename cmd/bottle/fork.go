package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
)

func (a *app) forkCommand() *cobra.Command {
	var count int
	cmd := &cobra.Command{
		Use:   "fork NAME [flags]",
		Short: "Make bottles from a running one, with its processes and files",
		Long:  textForkLong,
		Args:  oneName,
		RunE: func(_ *cobra.Command, args []string) error {
			if count < 1 || count > bottle.MaxForks {
				return withHint(fmt.Errorf(textForkCount, count), hintForkCount, bottle.MaxForks)
			}
			if !isHelper() {
				return a.forkByHelper()
			}
			return a.withEngine(func(e *bottle.Engine) error {
				name, err := a.resolve(e, args[0])
				if err != nil {
					return err
				}
				done := a.busy(textBusyFork, shownName(name))
				forks, err := e.Fork(a.ctx, name, count)
				done()
				if err != nil {
					return err
				}
				if lost := e.LostBySuspension(name); lost != "" {
					a.note(textForkLost, lost)
				}
				return a.watchAsHelper(e, forks)
			})
		},
	}
	cmd.Flags().IntVarP(&count, "count", "n", 1, "how many bottles to make")
	return cmd
}

// forkByHelper starts the process that makes bottles and then watches them.
func (a *app) forkByHelper() error {
	report, err := a.startHelper()
	if err != nil {
		return err
	}
	for _, name := range report.Names {
		a.note(textResumed, shownName(name), shownName(name))
		if _, err := fmt.Fprintln(a.stdout, shownName(name)); err != nil {
			return err
		}
	}
	return nil
}
