//go:build man

package main

import (
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// The command is only in the program that scripts/dist builds for itself, because a parser
// of Markdown that it needs is initialized by every command.
func init() { packaging = append(packaging, (*app).manCommand) }

// manCommand writes the manual pages, for packages (scripts/dist). Their date is
// SOURCE_DATE_EPOCH, if it is set.
func (a *app) manCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "man DIRECTORY",
		Short:  "Write manual pages to a directory",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			root.DisableAutoGenTag = true
			return doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "bottle", Manual: "bottle manual"}, args[0])
		},
	}
}
