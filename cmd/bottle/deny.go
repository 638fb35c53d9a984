package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
)

func (a *app) denyCommand() *cobra.Command {
	return a.policyCommand(policyVerb{
		use: "deny NAME HOST[:PORT]", short: "Keep a bottle that runs from a host", args: textDenyArgs,
		change: (*bottle.Engine).Deny, save: bottle.SaveDeny, done: textDenied, already: textDeniedAlready,
	})
}

// policyVerb is what allow and deny differ in.
type policyVerb struct {
	use, short, args string
	change           func(e *bottle.Engine, ctx context.Context, name, entry string) (bottle.PolicyChange, error)
	save             func(manifest, bottleName, entry string) (changed bool, err error)
	done, already    string
}

func (a *app) policyCommand(v policyVerb) *cobra.Command {
	var save bool
	cmd := &cobra.Command{
		Use:   v.use,
		Short: v.short,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usage("%s", v.args)
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withEngine(func(e *bottle.Engine) error {
				name, err := e.Resolve(a.ctx, args[0])
				if err != nil {
					return err
				}
				return a.changePolicy(e, v, name, args[1], save)
			})
		},
	}
	cmd.Flags().BoolVar(&save, "save", false, "write it to the manifest too, for the bottles to come")
	return cmd
}

func (a *app) changePolicy(e *bottle.Engine, v policyVerb, name, entry string, save bool) error {
	change, err := v.change(e, a.ctx, name, entry)
	if err != nil {
		return err
	}
	if change.Changed {
		for _, one := range change.Entries {
			a.note(v.done, name, visible(one))
		}
	} else {
		a.note(v.already, name, visible(entry))
	}
	if !save {
		return nil
	}
	saved, err := v.save(change.Manifest, change.Bottle, entry)
	if err != nil {
		return err
	}
	if saved {
		a.note(textSaved, change.Manifest)
	} else {
		a.note(textSavedAlready, change.Manifest)
	}
	return nil
}
