package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/trust"
	"github.com/bot-bottle/bottle/manifest"
)

type trustFlags struct{ yes, show, revoke, json bool }

func (a *app) trustCommand() *cobra.Command {
	var f trustFlags
	cmd := &cobra.Command{
		Use:     "trust [FILE]",
		Short:   "Approve a manifest, for runs without a question",
		Long:    textTrustLong,
		Example: textTrustExample,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) > 1:
				return fmt.Errorf(textUnexpectedArg, args[1])
			case f.show && len(args) > 0:
				return fmt.Errorf(textUnexpectedArg, args[0])
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 {
				a.manifest = args[0]
			}
			switch {
			case f.show:
				return a.showApprovals(f.json)
			case f.revoke:
				return a.revoke()
			}
			return a.trust(f.yes)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&f.yes, "yes", "y", false, "approve without confirmation")
	fs.BoolVar(&f.show, "show", false, "list all approvals and stop")
	fs.BoolVar(&f.revoke, "revoke", false, "remove all approvals of the manifest and stop")
	fs.BoolVar(&f.json, "json", false, "with --show: print a list of objects as JSON")
	cmd.MarkFlagsMutuallyExclusive("show", "revoke", "yes")
	cmd.MarkFlagsMutuallyExclusive("revoke", "json")
	return cmd
}

// trust shows a manifest and approves it after confirmation.
func (a *app) trust(yes bool) error {
	m, c, err := a.readManifest()
	if err != nil {
		return err
	}
	p := approvalOf(m, c)
	if p.err != nil {
		return p.err
	}
	if p.state.Approved {
		a.note(textTrustAlready, p.path)
		return nil
	}
	list, err := m.Describe("", c)
	if err != nil {
		return err
	}
	if err := printManifest(a.stderr, m, list); err != nil {
		return err
	}
	a.note("%s: %s", p.path, approvalText(p))
	if !yes {
		if err := a.confirm(textApprove); err != nil {
			return err
		}
	}
	if err := p.approve(); err != nil {
		return err
	}
	a.note(textTrustDone, p.path)
	return nil
}

// revoke removes the approvals of a manifest, which need not exist any more.
func (a *app) revoke() error {
	c := caller.Current()
	path := a.manifest
	if path == "" {
		var err error
		if path, err = manifest.Find(c); err != nil {
			return err
		}
	}
	path = c.Abs(path)
	removed, err := trust.Of(c).Revoke(path)
	if err != nil {
		return err
	}
	if removed {
		a.note(textTrustRevoked, path)
	} else {
		a.note(textTrustNone, path)
	}
	return nil
}

// approvalRow is an approval in the list of approvals.
type approvalRow struct {
	trust.Approval
	// Current reports whether the file has the approved content now.
	Current bool `json:"current"`
}

func (a *app) showApprovals(asJSON bool) error {
	c := caller.Current()
	list, err := trust.Of(c).List()
	if err != nil {
		return err
	}
	rows := []approvalRow{}
	for _, one := range list {
		m, err := manifest.Read(one.Path, c)
		rows = append(rows, approvalRow{one, err == nil && trust.Sum(string(m)) == one.SHA256})
	}
	if asJSON {
		return a.printJSON(rows)
	}
	return a.printApprovals(rows)
}
