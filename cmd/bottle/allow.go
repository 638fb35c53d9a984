package main

import (
	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/proxy"
)

func (a *app) allowCommand() *cobra.Command {
	return a.policyCommand(policyVerb{
		action: "allow",
		use:    "allow NAME HOST[:PORT]|@PRESET", short: "Allow a host for a running bottle",
		change: (*proxy.Manager).Allow, save: manifest.SaveAllow, done: textAllowed, already: textAllowedAlready,
	})
}
