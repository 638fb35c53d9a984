package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/manifest"
)

const (
	textPresetsLong = `List the presets: names of lists of hosts, for egress.allow and egress.deny in the
manifest, and for bottle allow and bottle deny. They belong to this version of bottle;
the plan of a run shows the hosts.

For each host the list says how data can be sent out through it, to somebody other
than its operator. No entry means that no way is known, except for the public
statistics of the host, such as its number of downloads.`
	textSends        = "can send data out"
	textPresetDenied = "denied"
)

func printPresets(w io.Writer, list []egress.Preset) error {
	t := tabwriter.NewWriter(wrapped(w), 0, 0, 2, ' ', 0)
	for i, p := range list {
		if i > 0 {
			_, _ = fmt.Fprintln(t)
		}
		_, _ = fmt.Fprintf(t, "%s: %s\n", p.Name, p.Use)
		for _, h := range p.Hosts {
			if h.Sends == "" {
				_, _ = fmt.Fprintf(t, "  %s\n", h.Host)
				continue
			}
			_, _ = fmt.Fprintf(t, "  %s\t%s: %s\n", h.Host, textSends, h.Sends)
		}
	}
	return t.Flush()
}

// policyRows prints an expanded policy: the hosts, and which of them presets stand for.
func policyRows(row func(name, value string), e manifest.Egress) {
	row("allowed hosts", orNone(e.Allow))
	if len(e.Rules) > 0 {
		rules := make([]string, len(e.Rules))
		for i, r := range e.Rules {
			rules[i] = r.String()
		}
		row("allowed requests", strings.Join(rules, ", "))
	}
	if len(e.Deny) > 0 {
		row("denied hosts", strings.Join(e.Deny, ", "))
	}
	// An invalid policy, which is an error elsewhere, denies nothing here.
	policy, _ := egress.Entries{Deny: e.Deny}.Policy()
	for _, p := range e.Presets {
		name, hosts := "preset "+p.Name, make([]string, len(p.Hosts))
		if p.List != "allow" {
			name = "denied preset " + p.Name
		}
		for i, h := range p.Hosts {
			hosts[i] = h.Host
			switch {
			case p.List != "allow":
			case policy.Check(h.Host, 443).Denied:
				hosts[i] += " (" + textPresetDenied + ")"
			case h.Sends != "":
				hosts[i] += " (" + textSends + ")"
			}
		}
		row(name, strings.Join(hosts, ", "))
	}
	if len(e.AllowPrivate) > 0 {
		row("private networks allowed", strings.Join(e.AllowPrivate, ", "))
	}
}
