package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
)

func (a *app) rmCommand() *cobra.Command {
	var force, discard bool
	cmd := &cobra.Command{
		Use:   "rm NAME...",
		Short: "Remove bottles",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return withHint(errors.New(textRmArgs), hintRm)
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			defer catchBrokenPipes()()
			return a.withEngine(func(e *bottle.Engine) error {
				var errs []error
				for _, name := range args {
					errs = append(errs, a.rm(e, name, force, discard))
				}
				return errors.Join(errs...)
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also remove a bottle whose agent is running or suspended")
	cmd.Flags().BoolVar(&discard, "discard", false, "also remove work that was not fetched")
	return cmd
}

func (a *app) rm(e *bottle.Engine, name string, force, discard bool) error {
	done := a.busy(textBusyRemove, visible(name))
	removed, err := a.removeBottle(e, name, force, discard)
	done()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(a.stdout, shownName(removed))
	return err
}

// removeBottle returns the complete name of the bottle that it has removed.
func (a *app) removeBottle(e *bottle.Engine, name string, force, discard bool) (string, error) {
	found, err := e.Find(a.ctx, name)
	if err != nil {
		return "", err
	}
	if !force {
		running, err := e.Running(a.ctx, found.Name)
		if err != nil {
			return "", err
		}
		if running && !e.IsPrepared(found.Name) {
			return "", withHint(fmt.Errorf(textRmRunning, shownName(found.Name)), hintRmRunning, shownName(found.Name))
		}
		if e.IsSuspended(found.Name) {
			return "", withHint(fmt.Errorf(textRmSuspended, shownName(found.Name)), hintSuspended, shownName(found.Name), shownName(found.Name))
		}
	}
	if !discard {
		if err := a.checkUnfetched(e, found.Name); err != nil {
			return "", err
		}
	}
	found.Launching = false // cleanup leaves such a bottle; here the user has named it
	if err := e.RemoveLeftovers(a.ctx, []bottle.Leftovers{found}); err != nil {
		return "", err
	}
	if !discard { // the agent may have worked until now
		if err := a.checkUnfetched(e, found.Name); err != nil {
			return "", err
		}
	}
	return found.Name, a.discardWork(e, found.Name)
}
