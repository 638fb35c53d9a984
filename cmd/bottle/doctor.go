package main

import (
	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/doctor"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/plan"
)

func (a *app) doctorCommand() *cobra.Command {
	var asJSON, refresh bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check that this host can run bottles and suggest fixes",
		Long:  textDoctorLong,
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			if refresh {
				if err := bottle.Refresh(a.ctx, a.config()); err != nil {
					return err
				}
			}
			return a.doctor(doctor.Run(a.ctx, a.config(), plan.Spec{ManifestPath: a.manifest, Caller: caller.Current()}), asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&refresh, "refresh", false, "first write the firewall rules of running bottles again")
	return cmd
}

// doctor prints the findings. The exit code is 1 if one is a fail.
func (a *app) doctor(found []doctor.Finding, asJSON bool) error {
	print := a.printFindings
	if asJSON {
		print = func(found []doctor.Finding) error { return a.printJSON(found) }
	}
	if err := print(found); err != nil {
		return err
	}
	for _, f := range found {
		if f.Level == doctor.LevelFail {
			return exitError(1)
		}
	}
	return nil
}
