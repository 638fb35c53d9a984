package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/bot-bottle/bottle/manifest"
)

const (
	textUsersMaySet = "users_may_set in %s has no effect"
	hintUsersMaySet = "remove it; root sets it in %s"

	textInitLong = `Write a bottle.yaml with a comment for each key into the current directory, or to
the path given with --manifest. An existing manifest is never overwritten.`
	textInitDone = "Wrote %s. Edit it, then run bottle config check."

	textConfigShowLong = `Show one agent of the manifest, or all, with defaults and absolute paths filled in
and the values of variables and build arguments hidden. Only the manifest is read;
bottle run AGENT --dry-run also inspects the host.`
	textConfigValid = "%s is valid: %s, %s."
	textNoAgents    = "The manifest has no agents yet."

	textEnvLarge    = "%s is too large for an environment (max %d bytes)"
	hintEnvFile     = "use a file that you can read without sudo"
	textPipeTimeout = "cannot read variables from %s: its writer did not finish within %v"
	hintPipeTimeout = "start the writer first, or use a file on tmpfs"
	textFDOutput    = "file descriptor %d is for output"
	hintFDOutput    = "pass variables on another descriptor, such as 3"
	textFDClosed    = "file descriptor %d is not open for reading"
	hintFDClosed    = "sudo closes descriptors above 2: use 0, or --env-file with a file on tmpfs"
	textCut         = "value of %s may be truncated: a terminal accepts lines of at most %d bytes"
	hintCut         = "pass it in another way, such as a file"
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
	t := tabwriter.NewWriter(wrapped(w), 0, 0, 2, ' ', 0)
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
	kindRows(row, d.Kind, d.KindHosts, d.Unattended)
	row("bottle", fmt.Sprintf("%s (%s)", d.Bottle, d.ManifestPath))
	row("image", d.Image)
	if b := d.Build; b != nil {
		row("build", buildLine(b))
	}
	command := "the image's"
	if len(d.Command) > 0 {
		command = commandLine(d.Command)
	}
	row("command", command)
	row("variables", orNone(variables(d.Env)))
	if len(d.Logins) > 0 {
		row("logins", strings.Join(d.Logins, ", ")+" (placeholders)")
	}
	policyRows(row, d.Egress)
	row("prompt", prompt(d.PromptBytes))
	row("skills", orNone(d.Skills))
	mcpRow(row, d.MCP)
	sshRows(row, d.SSH)
	if d.Git != nil {
		row("git", fmt.Sprintf("%s <%s>", d.Git.Name, d.Git.Email))
	}
	row("limits", limits(d.Limits))
	if d.Pool > 0 {
		warm := ""
		if d.Warm {
			warm = textPoolWarm
		}
		row("pool", count(d.Pool, "prepared bottle")+warm)
	}
}

func buildLine(b *manifest.BuildDescription) string {
	network := ""
	if b.HostNetwork {
		network = "host"
	}
	parts := []string{b.Context}
	for _, p := range []struct{ name, value string }{
		{"dockerfile", b.Dockerfile}, {"target", b.Target},
		{"args", strings.Join(b.Args, ", ")}, {"secrets", strings.Join(b.Secrets, ", ")}, {"network", network}, {"egress", strings.Join(b.Allow, ", ")},
	} {
		if p.value != "" {
			parts = append(parts, p.name+" "+p.value)
		}
	}
	return strings.Join(parts, "; ")
}
