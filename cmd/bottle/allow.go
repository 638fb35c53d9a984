package main

import (
	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/manifest"
)

func (a *app) allowCommand() *cobra.Command {
	return a.policyCommand(policyVerb{
		use: "allow NAME HOST[:PORT]|@PRESET", short: "Allow a host for a running bottle",
		change: (*bottle.Engine).Allow, save: manifest.SaveAllow, done: textAllowed, already: textAllowedAlready,
	})
}
