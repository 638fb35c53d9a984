package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/bot-bottle/bottle/manifest"
)

const (
	textTrustLong = `Show what a manifest allows, ask for confirmation, and store its approval. Without
FILE it is the manifest that bottle run would use. An approval is for one path and
one content: after a change, bottle run asks again, and a run without a question
(--yes, or no terminal) is refused. Files that the manifest names, such as a
Dockerfile, are not part of it. Approvals are stored in
~/.local/state/bottle/trust (or below XDG_STATE_HOME).`
	textTrustExample = `  bottle trust
  bottle trust --show
  bottle trust --revoke ~/src/project/bottle.yaml`

	textApprove      = "Approve this manifest?"
	textApproveStart = "Approve this manifest and start?"
	textTrustDone    = "Approved %s."
	textTrustAlready = "%s is approved already."
	textTrustRevoked = "Revoked the approval of %s."
	textTrustNone    = "%s is not approved."
	textNoApprovals  = "No manifests are approved."

	textUntrustedNew     = "untrusted manifest: %s was never approved"
	textUntrustedChanged = "untrusted manifest: %s has changed since it was approved"
	hintUntrusted        = "bottle trust %s shows and approves it; --trust uses it without an approval"
)

// maxChanges is the number of changed settings that are listed.
const maxChanges = 12

// approvalText describes the approval of a manifest, in capitals where the user should
// look.
func approvalText(p *approval) string {
	at := p.state.Time.Local().Format(time.DateOnly)
	switch {
	case p.state.Approved:
		return "approved on " + at
	case !p.changed():
		return "NEW: it was never approved"
	case len(p.changes) == 0:
		return fmt.Sprintf("CHANGED since it was approved on %s, but no setting", at)
	}
	list := p.changes
	more := ""
	if n := len(list) - maxChanges; n > 0 {
		list, more = list[:maxChanges], fmt.Sprintf(" and %d more", n)
	}
	return fmt.Sprintf("CHANGED since it was approved on %s: %s%s", at, strings.Join(list, ", "), more)
}

// printManifest prints the agents of a manifest as config show does, with what that
// hides or leaves to a run: literal values, build arguments and secrets, and the proxy.
func printManifest(w io.Writer, m *manifest.Manifest, list []manifest.Description) error {
	t := tabwriter.NewWriter(wrapped(w), 0, 0, 2, ' ', 0)
	row := func(name string, values []string) {
		if len(values) > 0 {
			_, _ = fmt.Fprintf(t, "  %s\t%s\n", name, visible(strings.Join(values, ", ")))
		}
	}
	for _, d := range list {
		printDescription(t, d)
		b := m.Bottles[d.Bottle]
		literals := map[string]string{}
		for _, v := range b.Env {
			if v.Literal != nil {
				literals[v.Name] = *v.Literal
			}
		}
		row("literal values", assignments(literals))
		if b.Build != nil {
			row("build arguments", assignments(b.Build.Args))
			row("build secrets", assignments(b.Build.Secrets))
		}
		if b.Proxy != (manifest.Proxy{}) {
			row("proxy", []string{strings.Join(strings.Fields(b.Proxy.Kind+" "+b.Proxy.Image+" "+b.Proxy.Version), " ")})
		}
		_, _ = fmt.Fprintln(t)
	}
	return t.Flush()
}

func (a *app) printApprovals(rows []approvalRow) error {
	if len(rows) == 0 {
		a.note(textNoApprovals)
		return nil
	}
	t := tabwriter.NewWriter(wrapped(a.stdout), 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(t, "PATH\tSHA256\tAPPROVED\tCURRENT")
	for _, r := range rows {
		current := "no"
		if r.Current {
			current = "yes"
		}
		_, _ = fmt.Fprintf(t, "%s\t%.12s\t%s\t%s\n", visible(r.Path), visible(r.SHA256), r.Time.Local().Format(time.DateTime), current)
	}
	return t.Flush()
}
