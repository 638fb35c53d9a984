package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/bot-bottle/bottle/setup"
)

const (
	textSetupLong = `Bring this host to the point where bottle doctor reports no failures: install what is
missing of containerd, gVisor, runc and the CNI plugins, and write bottle's system
configuration. What the host has in a suitable version stays as it is. A containerd that
is missing or too old is provided by a service of its own, bottle-containerd.service.

The source is named by the user: the host's packages (--packages), release files in a
directory or at a URL (--from), or a bundle (--bundle), which --make-bundle makes on a
host with network. Release files must be the pinned versions of this version of bottle,
or have a checksum in a file of --checksums; a bundle has its own checksums.

Every change is shown and must be confirmed. --undo removes exactly what setup has made;
files that were changed since stay and are named.`
	textSetupExample = `  sudo bottle setup --packages --dry-run
  sudo bottle setup --from ./releases
  bottle setup --make-bundle bottle-bundle.tar --from ./releases
  sudo bottle setup --bundle bottle-bundle.tar
  sudo bottle setup --undo`

	textNeedsRoot      = "running as user %d: this needs root"
	textSetupBound     = "only root sets up this host"
	textSetupStart     = "Make these changes?"
	textSetupUndo      = "Remove this?"
	textSetupStartBy   = "There is no systemd on this host. Start containerd with: %s"
	textSetupReady     = "This host can run bottles."
	textMissing        = "missing"
	textSetupNothing   = "There is nothing to do."
	textSetupKept      = "Kept: %s (%s)"
	textSetupBottles   = "%s on this host"
	textSetupUndoAlone = "--undo takes no source"
	textSetupFromOnly  = "--make-bundle takes release files of --from only"
	textNoFrom         = "missing source of release files"
	textBundleMade     = "Wrote %s: %s."
	textBundleChecksum = "Bundle %s has SHA-256 %s."

	hintSetupRoot    = "sudo bottle setup"
	hintSetupBound   = "ask root to run bottle setup"
	hintSetupBottles = "bottle cleanup removes them"
	hintNoFrom       = "--from DIRECTORY|URL"
	hintBundleExists = "name another file, or remove it"
)

// showSetup prints what setup found and what it will do.
func (a *app) showSetup(f setupFlags, p *setup.Plan) error {
	if f.asJSON {
		return a.printJSON(p)
	}
	t := tabwriter.NewWriter(wrapped(a.stderr), 0, 0, 2, ' ', 0)
	for _, part := range p.Parts {
		text := part.Found
		switch {
		case part.Source != "":
			text = part.Source
		case text == "":
			text = textMissing
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\n", part.Name, visible(text))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if len(p.Changes) == 0 {
		a.note(textSetupNothing)
		return nil
	}
	return a.printSetup(p.Changes)
}

func (a *app) showUndo(f setupFlags, u *setup.Undoing) error {
	if f.asJSON {
		return a.printJSON(u)
	}
	return a.printSetup(u.Changes)
}

func (a *app) printSetup(changes []setup.Change) error {
	t := tabwriter.NewWriter(wrapped(a.stderr), 0, 0, 2, ' ', 0)
	for _, c := range changes {
		text := c.Target
		if c.Detail != "" {
			text += " (" + c.Detail + ")"
		}
		_, _ = fmt.Fprintf(t, "  %s\t%s\n", c.Action, visible(text))
	}
	return t.Flush()
}
