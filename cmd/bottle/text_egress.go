package main

// What a user reads of the egress proxy; the rules are text.go's.

import (
	"encoding/json"
	"fmt"
	"iter"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/proxy"

	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/plan"
)

const (
	textEgressArgs     = "one bottle is to be named: bottle egress NAME"
	textNoLog          = "Nothing has been requested."
	textSince          = "--since %q is neither a time such as 10m ago nor one such as 2026-01-02T15:04:05Z"
	textRefused        = "The egress proxy refused the agent: %s."
	textToAllow        = "While %s runs, this allows it; with --save it is written to the manifest, too:"
	textToAllowNext    = "This allows it from the next run on:"
	textAllowCommand   = "bottle allow %s %s"
	textRefusedTitle   = "refused: %s"
	textAllowArgs      = "a bottle and a host are to be named: bottle allow NAME HOST[:PORT]"
	textDenyArgs       = "a bottle and a host are to be named: bottle deny NAME HOST[:PORT]"
	textAllowed        = "%s may reach %s from now on."
	textAllowedAlready = "%s may reach %s already."
	textDenied         = "%s may not reach %s any more; tunnels that are open stay so."
	textDeniedAlready  = "%s could not reach %s anyway."
	textSaved          = "Written to %s."
	textSavedAlready   = "%s says so already."
	textRestarted      = "The egress proxy of %s had ended and was started again; what was open through it was cut."
	textNoRestart      = "The egress proxy of %s has ended and cannot be started again, so that nothing is reached: %s"
	textLearnAsks      = "--learn lets everything out, so somebody has to watch: leave out --yes and --no-input, and run bottle on a terminal"
	textLearnt         = "The policy would have refused some of this. To allow it, apply this patch in %s, with patch -p1:"
	textLearntByHand   = "The policy would have refused some of this. To allow it, put this into %s, as %v:"
	textMoreHosts      = "and %d more"
	textNoPipelock     = "one agent is to be named: bottle config show AGENT --pipelock"
)

// egressJSON is an entry as a program reads it.
type egressJSON struct {
	egress.Entry
	Verdict     string `json:"verdict"`
	Destination string `json:"destination"`
}

// showEgress prints a line for each request that was let through or refused,
// when it is yielded; the proxy's own affairs are left out.
func (a *app) showEgress(log iter.Seq2[egress.Entry, error], denied, asJSON bool) error {
	shown := 0
	for entry, err := range log {
		if err != nil {
			return err
		}
		verdict := entry.Verdict()
		if verdict == "" || denied && verdict != egress.VerdictRefused && verdict != egress.VerdictLearnt {
			continue
		}
		shown++
		if asJSON {
			err = a.entryJSON(egressJSON{entry, verdict, entry.Destination()})
		} else {
			_, err = fmt.Fprintln(a.stdout, egressLine(entry))
		}
		if err != nil {
			return err
		}
	}
	if shown == 0 {
		a.note(textNoLog)
	}
	return nil
}

func (a *app) entryJSON(e egressJSON) error {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return a.writeJSON(data)
}

// egressLine is an entry in columns: when, verdict, host and port, method,
// bytes, duration, and why.
func egressLine(e egress.Entry) string {
	var bytes, took string
	if e.Bytes > 0 {
		bytes = decimal(e.Bytes)
	}
	if e.Duration > 0 {
		took = e.Duration.Round(time.Millisecond).String()
	}
	line := fmt.Sprintf("%s  %-7s  %-32s  %-7s  %8s  %8s  %s", e.Time.Local().Format(time.TimeOnly), e.Verdict(),
		visible(e.Destination()), visible(e.Method), bytes, took, visible(egressReason(e)))
	return strings.TrimRight(line, " ")
}

// egressReason is the entry of the policy that let a request through, or why it
// was not; and the URL, where the proxy sees one.
func egressReason(e egress.Entry) string {
	why := e.Reason
	switch {
	case why == "" && e.SNI != "":
		why = "the client asked for " + e.SNI
	case why == "":
		why = e.Rule
	}
	if e.URL == "" {
		return why
	}
	if e.Status > 0 && e.Verdict() == egress.VerdictAllowed {
		return strings.TrimSpace(fmt.Sprintf("%s  %s  %d", why, e.URL, e.Status))
	}
	return strings.TrimSpace(why + "  " + e.URL)
}

// decimal is a number of bytes as people read it: 999 B, 1.5 kB, 2.0 GB.
func decimal(n int64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	f, units := float64(n), "kMGTPE"
	for f /= 1000; f >= 999.95 && len(units) > 1; f /= 1000 {
		units = units[1:]
	}
	return fmt.Sprintf("%.1f %cB", f, units[0])
}

// since is a point in time, given as one or as how long ago.
func since(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, usage(textSince, text)
	}
	return t, nil
}

// maxSummary is how many hosts the table at a session's end has, and maxRefused
// how many are told in words and with the command that allows them.
const (
	maxSummary = 15
	maxRefused = 10
)

// showSummary tells at a session's end what the agent asked of which host, and
// what it was not allowed to reach: many clients keep the proxy's own words to
// themselves.
func (a *app) showSummary(agent string, hosts []egress.HostSummary) {
	if len(hosts) == 0 {
		return
	}
	t := tabwriter.NewWriter(a.stderr, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(t, "HOST\tREQUESTS\tBYTES\tREFUSED")
	for i, h := range hosts {
		if i == maxSummary {
			_, _ = fmt.Fprintf(t, textMoreHosts+"\n", len(hosts)-i)
			break
		}
		_, _ = fmt.Fprintf(t, "%s\t%d\t%s\t%d\n", visible(h.Destination), h.Requests, decimal(h.Bytes), h.Refused)
	}
	_ = t.Flush() // there is nowhere else to tell
	// The bottle goes now.
	a.showRefused(hosts, textToAllowNext, func(entry string) string {
		command := []string{"bottle"}
		if a.manifest != "" {
			command = append(command, "--manifest", a.manifest)
		}
		return commandLine(append(command, "allow", agent, entry, "--save"))
	})
}

// showRefusedHere tells at the end of a session of a bottle that stays what was
// refused in it.
func (a *app) showRefusedHere(name string, hosts []egress.HostSummary) {
	a.showRefused(hosts, fmt.Sprintf(textToAllow, name), func(entry string) string {
		return fmt.Sprintf(textAllowCommand, name, entry)
	})
}

// showRefused tells what was refused, and for each host the very command that
// would allow it, where one would.
func (a *app) showRefused(hosts []egress.HostSummary, toAllow string, allow func(entry string) string) {
	var refused, commands []string
	more := 0
	for _, h := range hosts {
		if h.Refused == 0 {
			continue
		}
		if len(refused) == maxRefused {
			more++
			continue
		}
		refused = append(refused, refusedHost(h))
		if entry := proxy.AllowingEntry(h.Destination, h.Scanner); entry != "" && !slices.Contains(commands, allow(entry)) {
			commands = append(commands, allow(entry))
		}
	}
	if len(refused) == 0 {
		return
	}
	if more > 0 {
		refused = append(refused, fmt.Sprintf(textMoreHosts, more))
	}
	a.note(textRefused, strings.Join(refused, ", "))
	if len(commands) > 0 {
		a.note("%s", toAllow)
	}
	for _, command := range commands {
		a.note("  %s", command)
	}
}

// refusedHost names a host, how often it was refused, and why if it is not that
// the policy does not have it.
func refusedHost(h egress.HostSummary) string {
	var notes []string
	if h.Refused > 1 {
		notes = append(notes, fmt.Sprintf("%d times", h.Refused))
	}
	if why, ok := refusals[h.Scanner]; ok {
		notes = append(notes, why)
	}
	if len(notes) == 0 {
		return visible(h.Destination)
	}
	return fmt.Sprintf("%s (%s)", visible(h.Destination), strings.Join(notes, ", "))
}

// refusals are what refuses beside the policy's list of hosts.
var refusals = map[string]string{
	"ssrf":      "a private or special address, for egress.allow_private",
	"dns":       "its name cannot be looked up",
	"dlp":       "a secret would have been sent",
	"sni":       "the TLS handshake was for another host",
	"ratelimit": "too much at once",
	"length":    "the URL is too long",
	"websocket": "a websocket without TLS",
	"scheme":    "not http or https",
	"parser":    "it cannot be read",
}

// maxTitleText bounds a notice in a terminal's title, in characters.
const maxTitleText = 200

// refusalTitle is the notice of a refusal: what was refused, and the command that
// would allow it.
func refusalTitle(name string, e egress.Entry) string {
	h := egress.HostSummary{Destination: e.Destination(), Refused: 1, Scanner: e.Scanner}
	text := fmt.Sprintf(textRefusedTitle, refusedHost(h))
	if entry := proxy.AllowingEntry(h.Destination, h.Scanner); entry != "" {
		text += " - " + fmt.Sprintf(textAllowCommand, name, entry)
	}
	if runes := []rune(text); len(runes) > maxTitleText {
		text = string(runes[:maxTitleText-1]) + "…"
	}
	return text
}

// proxyText names the proxy, and which image it is.
func proxyText(p plan.Proxy) string {
	if p.Image == "" {
		return p.Kind
	}
	if p.Pull {
		return fmt.Sprintf("%s, image %s, to be pulled", p.Kind, p.Image)
	}
	if strings.Contains(p.Image, "@") {
		return fmt.Sprintf("%s, image %s", p.Kind, p.Image)
	}
	return fmt.Sprintf("%s, image %s@%s", p.Kind, p.Image, p.Digest)
}

// showPipelock prints the configuration that pipelock gets for an agent.
func (a *app) showPipelock(m *manifest.Manifest, agent string) error {
	if agent == "" {
		return usage(textNoPipelock)
	}
	conf, err := plan.PipelockConfig(m, agent)
	if err != nil {
		return err
	}
	_, err = a.stdout.Write(conf)
	return err
}

// showLearnt prints what to add to the manifest after a run with --learn: as a
// patch, or as it is for a manifest that bottle does not change.
func (a *app) showLearnt(plan *plan.Plan, hosts []egress.HostSummary) {
	entries := proxy.LearntEntries(hosts)
	if len(entries) == 0 {
		return
	}
	patch, err := manifest.PatchAllow(plan.Manifest, plan.Bottle, entries)
	if err == nil && patch != "" {
		a.note(textLearnt, filepath.Dir(plan.Manifest))
		a.errorf("%s", patch)
		return
	}
	if err == nil {
		return // the manifest has them by now
	}
	a.note(textLearntByHand, plan.Manifest, err)
	a.note("bottles:\n  %s:\n    egress:\n      allow:", strconv.Quote(plan.Bottle))
	for _, entry := range entries {
		a.note("        - %s", strconv.Quote(entry))
	}
}
