package main

import (
	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle/egress"
)

// presetsCommand lists the presets of hosts. It needs neither root nor containerd.
func (a *app) presetsCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "presets",
		Short: "List the presets of hosts for egress.allow, allow and deny",
		Long:  textPresetsLong,
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			if asJSON {
				return a.printJSON(egress.Presets())
			}
			return printPresets(a.stdout, egress.Presets())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
