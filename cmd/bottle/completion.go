package main

import (
	"context"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/agents"
	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/images/supply"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/plan"
)

// completionTimeout bounds the queries of a completion, which the user waits for.
const completionTimeout = 2 * time.Second

// addCompletions sets the shell completion of a command and those below it. The
// placeholders in its usage decide what its arguments are: KIND, AGENT, NAME, IMAGE, a host
// or @PRESET, or FILE and CONTEXT, which the shell completes itself.
func (a *app) addCompletions(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		a.addCompletions(sub)
	}
	for flag, values := range map[string][]string{
		"pull":     plan.PullPolicies,
		"runtime":  {plan.Runsc, plan.Runc},
		"proxy":    {manifest.ProxyPipelock, manifest.ProxyBuiltin},
		"progress": supply.BuildProgress,
	} {
		if f := cmd.Flags().Lookup(flag); f != nil && f.Value.Type() == "string" {
			_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)) // fails if it is registered already
		}
	}
	if cmd.ValidArgsFunction == nil && cmd.HasParent() {
		cmd.ValidArgsFunction = a.completeArgs(strings.Fields(cmd.Use)[1:])
	}
}

// completeArgs completes the arguments of a command with these words in its usage.
func (a *app) completeArgs(usage []string) cobra.CompletionFunc {
	var lists []func() []string // by position
	repeats := false            // the last one
	for _, word := range usage {
		what, all := strings.CutSuffix(strings.Trim(word, "[]"), "...")
		switch {
		case what == "KIND":
			lists = append(lists, agents.Names)
		case what == "AGENT":
			lists = append(lists, a.agentNames)
		case what == "NAME":
			lists = append(lists, a.bottleNames)
		case what == "IMAGE":
			lists = append(lists, a.imageNames)
		case strings.HasSuffix(what, "@PRESET"):
			lists = append(lists, presetNames)
		case what == "FILE", what == "CONTEXT":
			return nil
		default:
			continue
		}
		repeats = all
	}
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		n := len(args)
		if repeats {
			n = min(n, len(lists)-1)
		}
		if n >= len(lists) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		found := slices.DeleteFunc(a.quietly(lists[n]), func(name string) bool { return slices.Contains(args, name) })
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

// presetNames returns the presets. A host cannot be completed.
func presetNames() []string {
	var out []string
	for _, p := range egress.Presets() {
		out = append(out, p.Name)
	}
	return out
}

// quietly calls a query without output, because the shell prints what a completion
// writes, and with a deadline.
func (a *app) quietly(list func() []string) []string {
	ctx, cancel := context.WithTimeout(a.ctx, completionTimeout)
	defer cancel()
	b := *a
	*a = app{
		ctx: ctx, stdin: a.stdin, stdout: io.Discard, stderr: io.Discard, quiet: true,
		address: a.address, namespace: a.namespace, manifest: a.manifest, withHost: a.withHost,
	}
	defer func() { *a = b }()
	return list()
}

// agentNames returns the agents in the manifest; none if it is invalid.
func (a *app) agentNames() []string {
	m, _, err := a.readManifest()
	if err != nil {
		return nil
	}
	return slices.Sorted(maps.Keys(m.Agents))
}

// bottleNames returns the short names of the existing bottles; none if containerd
// cannot be reached, for example without root.
func (a *app) bottleNames() []string {
	var out []string
	_ = a.withHost(func(h plan.Host) error {
		taken, err := h.Taken(a.ctx)
		for _, name := range slices.Sorted(maps.Keys(taken)) {
			// Other containers of the namespace are taken names too.
			if short, ok := strings.CutPrefix(name, names.Prefix); ok && !strings.HasSuffix(name, names.ProxySuffix) {
				out = append(out, short)
			} else if taken[name+names.ProxySuffix] {
				out = append(out, name)
			}
		}
		return err
	})
	return out
}

// imageNames returns the images in containerd's store.
func (a *app) imageNames() []string {
	var out []string
	_ = a.withEngine(func(e *bottle.Engine) error {
		list, err := e.Images().List(a.ctx)
		for _, i := range list {
			out = append(out, i.Name)
		}
		return err
	})
	return out
}
