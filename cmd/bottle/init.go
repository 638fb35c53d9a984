package main

import (
	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/trust"
	"github.com/bot-bottle/bottle/manifest"
)

func (a *app) initCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "init",
		Short: "Write a commented starter manifest",
		Long:  textInitLong,
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			c := caller.Current()
			path, err := manifest.WriteStarter(a.manifest, c)
			if err != nil {
				return err
			}
			a.noteFailure(trust.Of(c).Approve(c.Abs(path), string(manifest.Starter)))
			a.note(textInitDone, visible(path))
			return nil
		},
	}
}
