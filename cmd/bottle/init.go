package main

import (
	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/internal/caller"
)

func (a *app) initCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "init",
		Short: "Write a manifest to begin with",
		Long:  textInitLong,
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			path, err := bottle.WriteStarter(a.manifest, caller.Current())
			if err != nil {
				return err
			}
			a.note(textInitDone, visible(path))
			return nil
		},
	}
}
