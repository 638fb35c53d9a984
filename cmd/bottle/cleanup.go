package main

import (
	"errors"
	"slices"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/agentwork"
)

func (a *app) cleanupCommand() *cobra.Command {
	var yes, noInput, dryRun, asJSON, discard bool
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove all bottles and leftovers of crashed ones, after confirmation",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			defer catchBrokenPipes()()
			return a.withEngine(func(e *bottle.Engine) error {
				searched := a.busy(textBusySearch)
				defer searched()
				leftovers, err := e.FindLeftovers(a.ctx)
				if err != nil {
					return err
				}
				kept, err := e.Work().Workspaces(a.ctx)
				if err != nil {
					return err
				}
				searched()
				if asJSON {
					if err := a.printJSON(cleanupJSON(leftovers, kept)); err != nil {
						return err
					}
				} else {
					a.printLeftovers(leftovers)
					a.printKept(kept, discard)
				}
				if dryRun {
					return nil
				}
				if !yes && (len(leftovers) > 0 || discard && len(kept) > 0) {
					if noInput {
						return withHint(errors.New(textConfirm), hintConfirm)
					}
					if err := a.confirm(textRemoveAll); err != nil {
						return err
					}
				}
				defer a.busy(textBusyRemove, count(len(leftovers), "bottle"))()
				if err := errors.Join(e.RemoveLeftovers(a.ctx, leftovers), e.Forget()); err != nil || !discard {
					return err
				}
				var errs []error
				for _, k := range kept {
					errs = append(errs, a.discardWork(e, k.Name))
				}
				return errors.Join(errs...)
			})
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&yes, "yes", "y", false, "remove without confirmation")
	fs.BoolVar(&noInput, "no-input", false, "fail instead of asking")
	fs.BoolVar(&dryRun, "dry-run", false, "show only")
	fs.BoolVar(&discard, "discard", false, "also remove the work of all bottles, fetched or not")
	fs.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// cleanupItem is what a bottle has on this host, its work, or both.
type cleanupItem struct {
	bottle.Leftovers
	Work *agentwork.Kept `json:"work,omitempty"`
}

func cleanupJSON(leftovers []bottle.Leftovers, kept []agentwork.Kept) []cleanupItem {
	items := []cleanupItem{}
	for _, r := range leftovers {
		items = append(items, cleanupItem{Leftovers: r})
	}
	for _, k := range kept {
		i := slices.IndexFunc(items, func(item cleanupItem) bool { return item.Name == k.Name })
		if i < 0 {
			none := []string{}
			i, items = len(items), append(items, cleanupItem{Leftovers: bottle.Leftovers{Name: k.Name, Containers: none, Networks: none, Files: none}})
		}
		items[i].Work = &k
	}
	return items
}
