package main

// Every sentence that a user sees is in this file. Rules: one line for one
// mistake, beginning with what is wrong and ending with how to mend it; no
// full stop in errors; data on standard output, all else on standard error; no
// secret is ever an argument.

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime/debug"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/provision"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/manifest"
)

const (
	textRootShort = "Run AI coding agents in sandboxes that reach only what you allowed"
	textRootLong  = `bottle runs an AI coding agent under gVisor, on containerd, with no way out but
an egress proxy that lets through what the manifest allows.`
	textRunLong = `Run an agent of the manifest: show the plan, ask, start the egress proxy and the
agent's sandbox, run the agent's command in it, and remove everything at the end.`
	textRunExample = `  sudo bottle run impl
  sudo bottle run impl --yes -e LOG_LEVEL=debug -- -p "fix the failing test"
  sudo bottle run impl --dry-run --json`

	textNoAgent       = "no agent named: bottle run AGENT"
	textTooManyAgents = "unexpected argument %q: arguments for the agent's command go behind --"
	textBadFlag       = "%v: %s --help lists the flags"
	textNoInput       = "a question would have to be asked: answer it beforehand with --yes, or leave out --no-input"
	textExecArgs      = "a name and a command are needed: bottle exec NAME COMMAND"
	textExecFlag      = "%q stands behind the bottle's name: flags go before it, bottle exec %[1]s … %[2]s COMMAND"
	textRmArgs        = "no bottle named: bottle rm NAME"
	textRmRunning     = "%s runs: end it with bottle rm -f %[1]s"
	textPassphrase    = "Passphrase of %s"
	textNoTerminal    = "%q has to be asked and there is no terminal: run bottle on one, or forward the value from the environment"
	textInterrupted   = "bottle: interrupted"
	textNothingDone   = "Nothing was done."
	textStart         = "Start?"
	textRemoveAll     = "Remove all of this?"
	textNoBottles     = "No bottles are running."
	textNothingLeft   = "There is nothing to remove."
	textRenamed       = "The name %s was taken meanwhile: this bottle is %s."
)

// usageError is a mistake of the caller's that needs no more than its sentence.
type usageError string

func (e usageError) Error() string { return string(e) }

func usage(format string, args ...any) error { return usageError(fmt.Sprintf(format, args...)) }

func textRemoveFailed(name string, err error) error {
	return &hint.Error{
		Err:  fmt.Errorf("remove %s: %w", name, err),
		Hint: "see what is left and remove it with bottle cleanup",
	}
}

func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage("unexpected argument %q", args[0])
	}
	return nil
}

// printError writes an error: one line for each mistake, its advice behind it. An
// error may repeat what an image, a registry or an agent has said.
func (a *app) printError(err error) {
	for _, e := range hint.Split(err) {
		line := oneLine(e)
		if hint := hint.Of(e); hint != "" {
			line += ": " + hint
		}
		a.errorf("bottle: %s\n", visible(line))
	}
}

func oneLine(err error) string {
	return visible(strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; "))
}

func (a *app) note(format string, args ...any) {
	for line := range strings.SplitSeq(fmt.Sprintf(format, args...), "\n") {
		a.errorf("%s\n", visible(line))
	}
}

func (a *app) prompt(text string) { a.errorf("%s", text) }

// errorf writes to standard error; that failing is nowhere to be told.
func (a *app) errorf(format string, args ...any) { _, _ = fmt.Fprintf(a.stderr, format, args...) }

func (a *app) printJSON(v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return a.writeJSON(data)
}

// writeJSON ends a value with a line break. JSON escapes the old control
// characters only: some terminals obey those above U+007F too, and what turns
// the writing round draws over what stands beside it. Outside of strings JSON has
// none of these.
func (a *app) writeJSON(data []byte) error {
	out := make([]byte, 0, len(data)+1)
	for _, r := range string(data) {
		switch {
		case unicode.IsPrint(r) || r == '\n':
			out = utf8.AppendRune(out, r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
	}
	_, err := a.stdout.Write(append(out, '\n'))
	return err
}

// showPlan is the preflight: for a person on standard error, so that standard
// output stays the agent's; for a program as JSON on standard output.
func (a *app) showPlan(p *plan.Plan, asJSON bool) error {
	if asJSON {
		return a.printJSON(p)
	}
	return printPlan(a.stderr, p)
}

func printPlan(w io.Writer, p *plan.Plan) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	// Of a manifest that is somebody else's, nothing draws over what it asks for.
	row := func(name, value string) { _, _ = fmt.Fprintf(t, "  %s\t%s\n", name, visible(value)) }
	_, _ = fmt.Fprintf(t, "bottle %s\n", p.Name)
	row("agent", fmt.Sprintf("%s: %s", p.Agent, planCommand(p)))
	row("bottle", fmt.Sprintf("%s, of %s", p.Bottle, p.Manifest))
	row("image", image(p))
	if p.Build != nil {
		row("build", plannedBuild(p.Build))
	}
	row("runtime", p.Runtime)
	row("network", fmt.Sprintf("internal %s to the proxy only; proxy on %s (%s)", p.Network.Internal, p.Network.Bridge, p.Network.Egress))
	row("on the host", orNothing(p.Network.Changes))
	row("proxy", proxyText(p.Proxy))
	row("allowed hosts", orNothing(p.Egress.Allow))
	if len(p.Egress.AllowPrivate) > 0 {
		row("even private", strings.Join(p.Egress.AllowPrivate, ", "))
	}
	row("variables", orNothing(variables(plannedEnv(p.Env))))
	row("prompt", prompt(p.PromptBytes))
	row("skills", orNothing(p.Skills))
	row("ssh hosts", orNothing(sshHosts(p.SSH)))
	if p.Git != nil {
		row("git", fmt.Sprintf("%s <%s>", p.Git.Name, p.Git.Email))
	}
	row("limits", limits(p.Limits))
	for _, warning := range p.Warnings {
		row("WARNING", warning)
	}
	return t.Flush()
}

// commandLine quotes arguments that could be taken for several, or for a line
// of the plan.
func commandLine(args []string) string {
	plain := func(r rune) bool {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-_=+./:,@%~^", r)
	}
	out := make([]string, len(args))
	for i, arg := range args {
		out[i] = arg
		if strings.TrimFunc(arg, plain) != "" || arg == "" {
			out[i] = strconv.Quote(arg)
		}
	}
	return strings.Join(out, " ")
}

func orNothing(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}

func variables(env []manifest.EnvDescription) []string {
	var out []string
	for _, v := range env {
		switch {
		case v.Source == manifest.SourceLiteral:
			out = append(out, v.Name)
		case v.From != "" && v.From != v.Name:
			out = append(out, fmt.Sprintf("%s (%s from %s)", v.Name, v.Source, v.From))
		default:
			out = append(out, fmt.Sprintf("%s (%s)", v.Name, v.Source))
		}
	}
	return out
}

func plannedEnv(env []provision.Variable) []manifest.EnvDescription {
	out := make([]manifest.EnvDescription, len(env))
	for i, v := range env {
		out[i] = manifest.EnvDescription{Name: v.Name, Source: v.Source, From: v.From, Ask: v.Ask}
	}
	return out
}

func prompt(bytes int) string {
	if bytes == 0 {
		return "none"
	}
	return fmt.Sprintf("%d bytes", bytes)
}

func sshHosts(hosts []manifest.SSHHost) []string {
	var out []string
	for _, h := range hosts {
		key := "no key"
		switch {
		case h.IdentityFile == "" && h.Keys == nil:
			key = "the keys of your ssh agent, if you have one" // nobody was asked
		case h.Mode == manifest.SSHCopy:
			key = "the key " + h.IdentityFile + " is copied"
		case h.IdentityFile != "":
			key = "signed for by " + h.IdentityFile
		case len(h.Keys) > 0:
			key = fmt.Sprintf("signed for by your ssh agent, %d keys", len(h.Keys))
		}
		switch {
		case h.PubkeyAuthentication == manifest.PubkeyUnbound:
			key += ", unbound"
		case h.Forge != "":
			key += ", unbound with the host keys of " + h.Forge
		}
		out = append(out, fmt.Sprintf("%s (%s:%d, %s)", h.Host, h.HostName, h.Port, key))
	}
	return out
}

func limits(l manifest.Limits) string {
	s := fmt.Sprintf("memory %s, disk %s, %d processes", size(l.Memory), size(l.Disk), l.Pids)
	if l.CPUs > 0 {
		s += fmt.Sprintf(", %g CPUs", l.CPUs)
	}
	return s
}

func size(n int64) string {
	switch {
	case n >= 1<<30 && n%(1<<30) == 0:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 1<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d bytes", n)
}

func (a *app) printList(list []bottle.Status) error {
	if len(list) == 0 {
		a.note(textNoBottles)
		return nil
	}
	t := tabwriter.NewWriter(a.stdout, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(t, "NAME\tAGENT\tIMAGE\tRUNTIME\tSTATUS\tAGE")
	for _, s := range list {
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", visible(s.Name), visible(s.Agent), visible(s.Image), visible(s.Runtime), visible(s.Status), age(time.Since(s.Created)))
	}
	return t.Flush()
}

func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func (a *app) printRemains(remains []bottle.Remains) {
	if len(remains) == 0 {
		a.note(textNothingLeft)
		return
	}
	for _, r := range remains {
		a.note("%s", r.Name)
		for _, group := range []struct {
			kind  string
			items []string
		}{{"container", r.Containers}, {"network", r.Networks}, {"files", r.Files}} {
			for _, item := range group.items {
				a.note("  %-9s  %s", group.kind, item)
			}
		}
	}
}

// visible takes from what an agent asked for all that a terminal would obey.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return utf8.RuneError
		}
		return r
	}, s)
}

func (a *app) printTimings(steps []bottle.StepTime) {
	t := tabwriter.NewWriter(a.stderr, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(t, "begin ms\ttook ms\t step")
	for _, s := range steps {
		_, _ = fmt.Fprintf(t, "%.1f\t%.1f\t %s\n", ms(s.Begin), ms(s.Took), s.Step)
	}
	_ = t.Flush()
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// version is what the build says of itself.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
