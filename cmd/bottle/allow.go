package main

import (
	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/manifest"
)

func (a *app) allowCommand() *cobra.Command {
	return a.policyCommand(policyVerb{
		use: "allow NAME HOST[:PORT]", short: "Let a bottle that runs reach a host", args: textAllowArgs,
		change: (*bottle.Engine).Allow, save: manifest.SaveAllow, done: textAllowed, already: textAllowedAlready,
	})
}
