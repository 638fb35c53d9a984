package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/doctor"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/plan"
)

func (a *app) doctorCommand() *cobra.Command {
	var asJSON, refresh, hardening bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check that this host can run bottles and suggest fixes",
		Long:  textDoctorLong,
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			cfg, err := a.config()
			if err != nil {
				return err
			}
			if refresh {
				if err := bottle.Refresh(a.ctx, cfg); err != nil {
					return err
				}
			}
			if hardening {
				return a.hardening(cfg, asJSON)
			}
			return a.doctor(a.checkHost(cfg), asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&refresh, "refresh", false, "first write the firewall rules of running bottles again")
	cmd.Flags().BoolVar(&hardening, "hardening", false, "check only what docs/hardening.md asks of a host with several users")
	cmd.MarkFlagsMutuallyExclusive("hardening", "refresh")
	return cmd
}

// checkHost runs all checks.
func (a *app) checkHost(cfg bottle.Config) []doctor.Finding {
	defer a.busy(textBusyDoctor)()
	return doctor.Run(a.ctx, cfg, plan.Spec{ManifestPath: a.manifest, Caller: caller.Current()})
}

func (a *app) hardening(cfg bottle.Config, asJSON bool) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find executable: %w", err)
	}
	return a.doctor(doctor.Hardening(cfg, a.systemDir(), program, sudoersFile), asJSON)
}

// sudoersFile is that of sudoers(5).
const sudoersFile = "/etc/sudoers"

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
