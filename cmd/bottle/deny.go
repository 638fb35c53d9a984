package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/proxy"
)

func (a *app) denyCommand() *cobra.Command {
	return a.policyCommand(policyVerb{
		action: "deny",
		use:    "deny NAME HOST[:PORT]|@PRESET", short: "Block a host for a running bottle",
		change: (*proxy.Manager).Deny, save: manifest.SaveDeny, done: textDenied, already: textDeniedAlready,
	})
}

// policyVerb holds the differences between allow and deny.
type policyVerb struct {
	action        string // in the audit log
	use, short    string
	change        func(m *proxy.Manager, ctx context.Context, name, entry string) (proxy.PolicyChange, error)
	save          func(c caller.Caller, manifest, bottleName, entry string) (manifest.Edit, error)
	done, already string
}

func (a *app) policyCommand(v policyVerb) *cobra.Command {
	var save bool
	cmd := &cobra.Command{
		Use:   v.use,
		Short: v.short,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return withHint(errors.New(textPolicyArgs), "bottle %s", v.use)
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withEngine(func(e *bottle.Engine) error {
				name, err := a.resolve(e, args[0])
				if save && errors.Is(err, bottle.ErrNoBottle) {
					return a.saveForAgent(v, args[0], args[1], err)
				}
				if err != nil {
					return err
				}
				return a.changePolicy(e, v, name, args[1], save)
			})
		},
	}
	cmd.Flags().BoolVar(&save, "save", false, "also change the manifest; NAME can then be an agent whose bottle does not run")
	return cmd
}

func (a *app) changePolicy(e *bottle.Engine, v policyVerb, name, entry string, save bool) error {
	change, err := a.auditedChange(e, v, name, entry)
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
	return a.savePolicy(v, change.Manifest, change.Bottle, entry)
}

// saveForAgent changes only the manifest, for an agent whose bottle does not run.
// Without such an agent it returns the error none.
func (a *app) saveForAgent(v policyVerb, agent, entry string, none error) error {
	m, err := plan.Spec{ManifestPath: a.manifest, Caller: caller.Current()}.Manifest()
	if err != nil {
		return errors.Join(none, err)
	}
	cfg := m.Agents[agent]
	if cfg == nil {
		return none
	}
	return a.savePolicy(v, m.Path, cfg.Bottle, entry)
}

func (a *app) savePolicy(v policyVerb, manifest, bottleName, entry string) error {
	c := caller.Current()
	edit, err := v.save(c, manifest, bottleName, entry)
	if err != nil {
		return err
	}
	if edit.Changed() {
		a.saved(c, manifest, edit)
		a.note(textSaved, manifest)
	} else {
		a.note(textSavedAlready, manifest)
	}
	return nil
}
