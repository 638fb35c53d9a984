package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/bot-bottle/bottle/manifest"
)

const (
	textInitLong = `Write bottle.yaml, with a comment for each thing that it can say, into this folder
or where --manifest says. A manifest that is there is left as it is.`
	textInitDone = "%s is written: edit it, then bottle config check."

	textConfigShowLong = `Show one agent of the manifest, or each, with its bottle: defaults and paths are
filled in, and no value of a variable or a build argument is shown. Nothing of
the host is looked at; bottle run AGENT --dry-run does that.`
	textConfigGood = "%s is good: %s, %s."
	textEnvLarge   = "%s holds more than %d bytes, which no environment can"
	textFDOutput   = "file descriptor %d is for output: give variables on another, such as 3"
	textFDClosed   = "file descriptor %d is not open for reading: sudo closes those above 2, so use 0 there, or --env-file with a file on tmpfs"
	textCut        = "the value of %s may be cut: a terminal passes 4095 bytes of a line on, so give it in another way, such as a file"
	textNoAgents   = "The manifest has no agents yet."
)

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

func printDescriptions(w io.Writer, list []manifest.Description) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, textNoAgents)
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i, d := range list {
		if i > 0 {
			_, _ = fmt.Fprintln(t)
		}
		printDescription(t, d)
	}
	return t.Flush()
}

func printDescription(w io.Writer, d manifest.Description) {
	row := func(name, value string) { _, _ = fmt.Fprintf(w, "  %s\t%s\n", name, visible(value)) }
	_, _ = fmt.Fprintf(w, "agent %s\n", d.Agent)
	row("bottle", fmt.Sprintf("%s, of %s", d.Bottle, d.ManifestPath))
	row("image", d.Image)
	if b := d.Build; b != nil {
		row("build", buildLine(b))
	}
	command := "the image's"
	if len(d.Command) > 0 {
		command = commandLine(d.Command)
	}
	row("command", command)
	row("variables", orNothing(variables(d.Env)))
	row("allowed hosts", orNothing(d.Egress.Allow))
	if len(d.Egress.AllowPrivate) > 0 {
		row("even private", strings.Join(d.Egress.AllowPrivate, ", "))
	}
	row("prompt", prompt(d.PromptBytes))
	row("skills", orNothing(d.Skills))
	row("ssh hosts", orNothing(sshHosts(d.SSH)))
	if d.Git != nil {
		row("git", fmt.Sprintf("%s <%s>", d.Git.Name, d.Git.Email))
	}
	row("limits", limits(d.Limits))
}

func buildLine(b *manifest.BuildDescription) string {
	parts := []string{b.Context}
	for _, p := range []struct{ name, value string }{
		{"dockerfile", b.Dockerfile}, {"target", b.Target},
		{"args", strings.Join(b.Args, ", ")}, {"secrets", strings.Join(b.Secrets, ", ")},
	} {
		if p.value != "" {
			parts = append(parts, p.name+" "+p.value)
		}
	}
	return strings.Join(parts, "; ")
}
