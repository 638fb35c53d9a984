package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/plan"
)

// configCommand groups the commands that read only the manifest and need neither
// root nor containerd.
func (a *app) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check and show the manifest",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.configCheckCommand(), a.configShowCommand(), a.configSchemaCommand())
	return cmd
}

// readManifest reads the manifest that bottle run would use.
func (a *app) readManifest() (*manifest.Manifest, caller.Caller, error) {
	c := caller.Current()
	m, err := plan.Spec{ManifestPath: a.manifest, Caller: c}.Manifest()
	return m, c, err
}

func (a *app) configCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Validate the manifest and report all errors",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			m, _, err := a.readManifest()
			if err != nil {
				return err
			}
			for _, w := range plan.ManifestWarnings(m) {
				a.note("WARNING: %s", visible(w))
			}
			a.note(textConfigValid, visible(m.Path), count(len(m.Bottles), "bottle"), count(len(m.Agents), "agent"))
			return nil
		},
	}
}

func (a *app) configShowCommand() *cobra.Command {
	var asJSON, pipelock, origin bool
	cmd := &cobra.Command{
		Use:   "show [AGENT]",
		Short: "Show agents and their bottles with defaults filled in and secrets hidden",
		Long:  textConfigShowLong,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf(textUnexpectedArg, args[1])
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if origin {
				if len(args) > 0 {
					return fmt.Errorf(textUnexpectedArg, args[0])
				}
				return a.showOrigins(asJSON)
			}
			m, c, err := a.readManifest()
			if err != nil {
				return err
			}
			agent := ""
			if len(args) == 1 {
				agent = args[0]
			}
			if pipelock {
				return a.showPipelock(m, agent)
			}
			list, err := m.Describe(agent, c)
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(list)
			}
			return printDescriptions(a.stdout, list)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a list of objects as JSON")
	cmd.Flags().BoolVar(&origin, "origin", false, "show bottle's own settings instead, and where each comes from")
	cmd.Flags().BoolVar(&pipelock, "pipelock", false, "print only pipelock's configuration for the agent's policy")
	cmd.MarkFlagsMutuallyExclusive("origin", "pipelock")
	return cmd
}

func (a *app) configSchemaCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the manifest's JSON Schema, for editors",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := a.stdout.Write(manifest.Schema)
			return err
		},
	}
}
