package main

// All text that a user sees is in the text files. Rules: one line per error,
// starting with what is wrong, without a full stop; how to fix it is a hint, on a
// line of its own; data goes to standard output, everything else to standard
// error; no argument is ever a secret.

import (
	"bytes"
	"encoding/json"
	"fmt"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/timing"
)

const (
	textRootShort = "Run AI coding agents in sandboxes that reach only the hosts you allow"
	textRootLong  = `bottle runs an AI coding agent in a gVisor sandbox on containerd. Its only way out
is an egress proxy that allows the hosts listed in the manifest.`
	textRootExample = `  sudo bottle doctor             # does this host have what bottles need?
  bottle init                    # write a manifest, with the agent claude
  bottle login claude            # store its login
  sudo bottle run claude --cwd   # run it on a copy of this directory`
	textRunLong = `Run an agent of the manifest in a new bottle: show the plan, ask for confirmation,
start the egress proxy and the sandbox, run the agent's command, and remove
everything at the end. Arguments after -- are appended to the agent's command.`
	textRunExample = `  sudo bottle run impl
  sudo bottle run impl --yes -e LOG_LEVEL=debug -- -p "fix the failing test"
  sudo bottle run impl --dry-run --json`

	textExecExample = `  sudo bottle exec impl git log --oneline
  sudo bottle exec -u root -w /workspace impl sh`
	textAttachLong = `Rejoin the session of a bottle that was started with bottle run -d or --keep: its screen
is drawn again. Several clients may be attached; the size of the last one counts. The
detach keys, or the end of the terminal, leave the session running.`
	textStopLong = `Stop the agents of bottles: their processes get SIGTERM, and what is left after the
timeout is killed. The bottle stays, with its files, until bottle rm. If bottle run
waits for the agent, it then removes the bottle.`

	textInternalCommand = "%s is only for containerd's shims"
	textShimCommand     = "the shim is only for containerd"

	textUnknownCommand = "unknown command %q for %q"
	textUnexpectedArg  = "unexpected argument %q"
	textNoAgent        = "missing agent name"
	textConfirm        = "confirmation required"
	textExecArgs       = "expected a bottle name and a command"
	textExecFlag       = "flag %q after the bottle name"
	textRmArgs         = "missing bottle name"
	textRmRunning      = "%s is running"
	textNoTerminal     = "cannot ask for %s: no terminal"
	textRemoveFailed   = "remove %s: %w"

	textStartLong = `Run the agent of a stopped bottle again, in a new sandbox with the same workspace, under
the same name. Its agent must still be in the manifest. What the agent has changed outside
the workspace is lost. As with bottle run, the plan is shown first.`
	textNoWorkspace   = "%s has no workspace"
	hintNoWorkspace   = "only a bottle of bottle run --cwd can be started again"
	hintStart         = "bottle start NAME"
	hintStartRunning  = "bottle attach %s rejoins its session"
	textDetachKeys    = "keys that leave the session, as docker's"
	textDetachedRun   = "%s runs in the background. bottle attach %s rejoins it."
	textDetached      = "Detached: %s continues. bottle attach %s rejoins it."
	textSessionKilled = "the session of %s has ended: %s"
	textSessionEnded  = "the session of %s has ended with exit code %d"
	textNeedsTerminal = "%s has a terminal, and standard input or output is not one"
	textBadKeys       = "invalid detach keys %q"
	hintSessionKilled = "bottle rm %s removes the bottle"
	hintSessionEnded  = "bottle logs %s shows its output"
	hintNeedsTerminal = "run bottle on a terminal, or see bottle logs -f %s"
	hintBadKeys       = "a list of letters or ctrl-LETTER, such as ctrl-p,ctrl-q"
	textNoName        = "missing bottle name"
	textStopTimeout   = "invalid timeout %d"
	textStopKilled    = "%s did not end within %d seconds and was killed."
	textFormatFlag    = "print each bottle as json or with a Go template, such as '{{.Name}}'"
	textBadFormat     = "invalid format: %s"
	textBadFilter     = "invalid filter %q"

	hintName         = "%s NAME"
	hintStopTimeout  = "the timeout is in seconds, 0 kills immediately"
	hintBadFormat    = "json, or a Go template with fields as in the JSON output of bottle inspect, such as '{{.Name}} {{.Status}}'"
	hintBadFilter    = "KEY=VALUE, where KEY is one of %s"
	hintBadPattern   = "VALUE is a shell pattern: * and ? match any characters, [a-z] a range"
	hintHelp         = "%s --help shows the usage"
	hintDidYouMean   = "did you mean %s?"
	hintRun          = "bottle run AGENT"
	hintAgentArgs    = "put arguments for the agent's command after --"
	hintConfirm      = "pass --yes, or omit --no-input"
	hintExec         = "bottle exec NAME COMMAND"
	hintExecFlag     = "put flags before the name: bottle exec %s … %s COMMAND"
	hintRm           = "bottle rm NAME"
	hintRmRunning    = "bottle rm -f %s removes it"
	hintNoTerminal   = "run bottle on a terminal, or forward the value from the environment"
	hintRemoveFailed = "bottle cleanup shows and removes what is left"

	textPassphrase  = "Passphrase of %s"
	textAsks        = "%s (the manifest asks: %q)"
	textInterrupted = "bottle: interrupted"
	textNothingDone = "Nothing was done."
	textStart       = "Start?"
	textRemoveAll   = "Remove all of this?"
	textNoBottles   = "No bottles are running."
	textNothingLeft = "There is nothing to remove."
	textLaunching   = "%s is being launched by another process and stays."
	textRenamed     = "The name %s was taken in the meantime; this bottle is named %s."
)

// withHint formats a hint for an error.
func withHint(err error, format string, args ...any) error {
	return &hint.Error{Err: err, Hint: fmt.Sprintf(format, args...)}
}

// noArgs rejects arguments; those of a command that only groups others are
// unknown commands.
func noArgs(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
	case !cmd.HasSubCommands():
		return fmt.Errorf(textUnexpectedArg, args[0])
	}
	err := fmt.Errorf(textUnknownCommand, args[0], cmd.CommandPath())
	cmd.SuggestionsMinimumDistance = 2 // cobra sets this default only for its own message
	if names := cmd.SuggestionsFor(args[0]); len(names) > 0 {
		slices.Sort(names) // cobra sorts commands only at some times
		return withHint(err, hintDidYouMean, alternatives(names))
	}
	return withHint(err, hintHelp, cmd.CommandPath())
}

// alternatives formats names as `"a", "b" or "c"`.
func alternatives(names []string) string {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = strconv.Quote(name)
	}
	last := len(quoted) - 1
	if last == 0 {
		return quoted[0]
	}
	return strings.Join(quoted[:last], ", ") + " or " + quoted[last]
}

// printError writes each error on one line and its hint on the next. Errors may
// quote an image, a registry or an agent.
func (a *app) printError(err error) {
	for _, e := range hint.Split(err) {
		a.errorf("bottle: %s\n", oneLine(e.Error()))
		if hint := hint.Of(e); hint != "" {
			a.errorf("hint: %s\n", oneLine(hint))
		}
	}
}

func oneLine(text string) string {
	return visible(strings.ReplaceAll(strings.TrimSpace(text), "\n", "; "))
}

func (a *app) note(format string, args ...any) {
	for line := range strings.SplitSeq(fmt.Sprintf(format, args...), "\n") {
		a.errorf("%s\n", visible(line))
	}
}

func (a *app) prompt(text string) { a.errorf("%s", text) }

// errorf writes to standard error, whose own errors cannot be reported.
func (a *app) errorf(format string, args ...any) {
	a.lines.write(func() { _, _ = fmt.Fprintf(a.stderr, format, args...) })
}

func (a *app) printJSON(v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return a.writeJSON(data)
}

// writeJSON writes a value and a line break. encoding/json escapes only control
// characters below U+0020, but some terminals also interpret those above U+007F,
// and bidirectional controls reorder the text around them. All of these occur only
// within strings.
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
	var out bytes.Buffer // a tabwriter writes single cells
	t := tabwriter.NewWriter(&out, 0, 0, 3, ' ', 0)
	worked := slices.ContainsFunc(list, func(s bottle.Status) bool { return s.Work != nil })
	header := "NAME\tAGENT\tIMAGE\tRUNTIME\tSTATUS\tAGE"
	if worked {
		header += "\tWORK"
	}
	_, _ = fmt.Fprintln(t, header)
	for _, s := range list {
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s", visible(s.Name), visible(s.Agent), visible(s.Image), visible(s.Runtime), visible(s.Status), age(time.Since(s.Created)))
		switch {
		case s.Work != nil:
			_, _ = fmt.Fprintf(t, "\t%s", summaryText(s.Work.Summary, s.Work.Used, s.Work.Unfetched))
		case worked:
			_, _ = fmt.Fprint(t, "\tnone")
		}
		_, _ = fmt.Fprintln(t)
	}
	_ = t.Flush() // to a buffer
	_, err := wrapped(a.stdout).Write(out.Bytes())
	return err
}

func age(d time.Duration) string {
	d = max(d, 0) // the clock was set back
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

func (a *app) printLeftovers(leftovers []bottle.Leftovers) {
	if len(leftovers) == 0 {
		a.note(textNothingLeft)
		return
	}
	for _, r := range leftovers {
		if r.Launching {
			a.note(textLaunching, shownName(r.Name))
			continue
		}
		a.note("%s", shownName(r.Name))
		for _, group := range []struct {
			kind  string
			items []string
		}{{"container", r.Containers}, {"network", r.Networks}, {"files", r.Files}, {"process", r.Processes}} {
			for _, item := range group.items {
				a.note("  %-9s  %s", group.kind, item)
			}
		}
	}
}

// visible replaces everything that a terminal would interpret in untrusted text.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return utf8.RuneError
		}
		return r
	}, s)
}

func (a *app) printTimings(steps []timing.StepTime) {
	t := tabwriter.NewWriter(a.stderr, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(t, "start ms\ttook ms\t step")
	for _, s := range steps {
		_, _ = fmt.Fprintf(t, "%.1f\t%.1f\t %s\n", ms(s.Begin), ms(s.Took), s.Step)
	}
	_ = t.Flush()
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// release is the version of a package; its build sets it (scripts/dist).
var release string

// version is the release, or the main module's version, as the build recorded it.
func version() string {
	if release != "" {
		return release
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
