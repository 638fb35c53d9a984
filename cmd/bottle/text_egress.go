package main

// Text about the egress proxy. The rules in text.go apply.

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/egress/hostrule"
	"github.com/bot-bottle/bottle/proxy"

	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/plan"
)

const (
	textOneBottle      = "expected exactly one bottle name"
	hintEgress         = "bottle egress NAME"
	textNoLog          = "Nothing has been requested."
	textSince          = "invalid --since %q"
	hintSince          = "give a duration such as 10m, or a time such as 2026-01-02T15:04:05Z"
	textRefused        = "The egress proxy refused: %s."
	textToAllow        = "To allow it while %s runs (add --save to write it to the manifest too):"
	textToAllowNext    = "To allow it from the next run on:"
	textAllowCommand   = "bottle allow %s %s"
	textRefusedTitle   = "refused: %s"
	textPolicyArgs     = "expected a bottle name and a host"
	textAllowed        = "%s can now reach %s."
	textAllowedAlready = "%s can already reach %s."
	textDenied         = "%s can no longer reach %s; open tunnels stay open."
	textDeniedAlready  = "%s could not reach %s before either."
	textSaved          = "Saved to %s."
	textSavedAlready   = "%s already says so."
	textRestarted      = "The egress proxy of %s ended and was restarted; its open connections were closed."
	textProxyLimit     = "The egress proxy of %s reached its limit of %s."
	hintProxyMemory    = "hint: raise proxy.memory in the manifest"
	textNoRestart      = "The egress proxy of %s ended and cannot be restarted, so the bottle reaches no host: %s"
	textLearnAsks      = "--learn allows every public host and needs somebody to watch"
	hintLearnAsks      = "omit --yes and --no-input, and run bottle on a terminal"
	textLearned        = "The policy would have refused some of these requests. To allow them, run patch -p1 in %s with this patch:"
	textLearnedByHand  = "The policy would have refused some of these requests. To allow them, add this to %s by hand (%v):"
	textLearnedRules   = "Requests to some hosts were read. To allow only these, put this in the place of their entries under egress.allow:"
	textUnbound        = "PubkeyAuthentication: unbound in the ssh entry permits it, and lets whoever holds that host's private key log in as you wherever your key is accepted"
	textMoreHosts      = "and %d more"
	textSecrets        = "with %s"
	textPush           = "push to %s"
	textNoPipelock     = "expected exactly one agent name"
	hintNoPipelock     = "bottle config show AGENT --pipelock"
)

// egressJSON is an entry of the log as JSON.
type egressJSON struct {
	egress.Entry
	Verdict     string `json:"verdict"`
	Destination string `json:"destination"`
}

// showEgress prints a line for each request, as it is yielded. Other events of the
// proxy are left out.
func (a *app) showEgress(log iter.Seq2[egress.Entry, error], denied, asJSON bool) error {
	shown := 0
	for entry, err := range log {
		if err != nil {
			return err
		}
		verdict := entry.Verdict()
		if verdict == "" || denied && verdict != egress.VerdictRefused && verdict != egress.VerdictLearned {
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

// egressLine formats an entry in columns: time, verdict, host and port, method,
// bytes, duration and reason.
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

// egressReason is the policy's entry that allowed a request, or the reason of a
// refusal, and the URL if the proxy knows it. Of a signature it is the user and the key.
func egressReason(e egress.Entry) string {
	why := e.Reason
	switch {
	case e.SSH != nil:
		return signatureText(e)
	case why == "" && e.SNI != "":
		why = "TLS handshake for " + e.SNI
	case why == "":
		why = e.Rule
	}
	if e.Verdict() == egress.VerdictSent && len(e.Secrets) > 0 {
		why = fmt.Sprintf(textSecrets, strings.Join(e.Secrets, ", "))
	}
	if len(e.Refs) > 0 {
		why = strings.TrimSpace(why + "  " + fmt.Sprintf(textPush, strings.Join(e.Refs, ", ")))
	}
	if e.URL == "" {
		return why
	}
	if verdict := e.Verdict(); e.Status > 0 && (verdict == egress.VerdictAllowed || verdict == egress.VerdictClosed || verdict == egress.VerdictSent) {
		return strings.TrimSpace(fmt.Sprintf("%s  %s  %d", why, e.URL, e.Status))
	}
	return strings.TrimSpace(why + "  " + e.URL)
}

// signatureText formats the reason, the user and the key of a requested signature.
func signatureText(e egress.Entry) string {
	var parts []string
	for _, p := range [][2]string{{"", e.Reason}, {"user ", e.SSH.User}, {"key ", e.SSH.Key}} {
		if p[1] != "" {
			parts = append(parts, p[0]+p[1])
		}
	}
	if e.Scanner == egress.ScannerSSHUnbound {
		parts = append(parts, textUnbound)
	}
	return strings.Join(parts, "; ")
}

// decimal formats a number of bytes: 999 B, 1.5 kB, 2.0 GB.
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

// since parses a time, or a duration before now.
func since(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, withHint(fmt.Errorf(textSince, text), hintSince)
	}
	return t, nil
}

// maxSummary is the number of hosts in the table at the end of a session, and
// maxRefused the number of refused hosts that are listed with a command.
const (
	maxSummary = 15
	maxRefused = 10
)

// showSummary prints requests by host at the end of a run, and what was refused:
// many clients do not show the proxy's own message.
func (a *app) showSummary(agent string, hosts []egress.HostSummary) {
	if len(hosts) == 0 {
		return
	}
	t := tabwriter.NewWriter(wrapped(a.stderr), 0, 0, 3, ' ', 0)
	// Few bottles have hosts whose requests are read.
	sent := slices.ContainsFunc(hosts, func(h egress.HostSummary) bool { return h.Sent > 0 })
	columns := "HOST\tREQUESTS\tBYTES\tREFUSED"
	if sent {
		columns += "\tREAD"
	}
	_, _ = fmt.Fprintln(t, columns)
	for i, h := range hosts {
		if i == maxSummary {
			_, _ = fmt.Fprintf(t, textMoreHosts+"\n", len(hosts)-i)
			break
		}
		row := fmt.Sprintf("%s\t%d\t%s\t%d", visible(h.Destination), h.Requests, decimal(h.Bytes), h.Refused)
		if sent {
			row += fmt.Sprintf("\t%d", h.Sent)
		}
		_, _ = fmt.Fprintln(t, row)
	}
	_ = t.Flush() // an error of standard error cannot be reported
	// The bottle is removed now, so the commands change the manifest.
	a.showRefused(hosts, textToAllowNext, func(entry string) string {
		command := []string{"bottle"}
		if a.manifest != "" {
			command = append(command, "--manifest", a.manifest)
		}
		return commandLine(append(command, "allow", agent, entry, "--save"))
	})
}

// showSessionRefused lists what was refused during a session of a bottle that keeps
// running.
func (a *app) showSessionRefused(name string, hosts []egress.HostSummary) {
	a.showRefused(hosts, fmt.Sprintf(textToAllow, name), func(entry string) string {
		return fmt.Sprintf(textAllowCommand, name, entry)
	})
}

// showRefused lists what was refused, and the commands that would allow it.
func (a *app) showRefused(hosts []egress.HostSummary, toAllow string, allow func(entry string) string) {
	var refused, commands []string
	more, unbound := 0, false
	for _, h := range hosts {
		if h.Refused == 0 {
			continue
		}
		unbound = unbound || h.Scanner == egress.ScannerSSHUnbound
		if len(refused) == maxRefused {
			more++
			continue
		}
		refused = append(refused, refusedHost(h))
		if entry, _ := proxy.AllowingEntry(h.Destination, h.Scanner); entry != "" && !slices.Contains(commands, allow(entry)) {
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
	if unbound {
		a.note("hint: " + textUnbound)
	}
}

// refusedHost formats a host with the number of refusals, and with the reason if it
// is another than that the policy does not list the host.
func refusedHost(h egress.HostSummary) string {
	var notes []string
	if h.Refused > 1 {
		notes = append(notes, fmt.Sprintf("%d times", h.Refused))
	}
	if why, ok := refusals[h.Scanner]; ok {
		notes = append(notes, why)
	} else if _, problem := proxy.AllowingEntry(h.Destination, h.Scanner); problem != nil {
		notes = append(notes, problem.Reason)
	} else if h.Scanner != "" && h.Scanner != "allowlist" && h.Scanner != "port" {
		notes = append(notes, "refused by the proxy's check "+visible(h.Scanner))
	}
	if len(notes) == 0 {
		return visible(h.Destination)
	}
	return fmt.Sprintf("%s (%s)", visible(h.Destination), strings.Join(notes, ", "))
}

// refusals describes the reasons of refusals other than the list of hosts.
var refusals = map[string]string{
	"ssrf":              "private or special address, needs egress.allow_private",
	"dns":               "name cannot be resolved",
	"dlp":               "the request contained a secret",
	"sni":               "TLS handshake for another host",
	"ratelimit":         "too many requests",
	"length":            "URL or header too long",
	"websocket":         "websocket without TLS",
	"scheme":            "neither http nor https",
	"parser":            "malformed request",
	"denylist":          "denied by the policy",
	"self":              "the sandbox itself, which needs no proxy",
	"host":              "HTTP request for another host than its tunnel",
	egress.ScannerRules: "no rule of egress.allow allows the request",
	// A placeholder that is not replaced there.
	egress.ScannerInject: "a secret that is not for this host or this part of a request",
	// Checks of the ssh agent.
	egress.ScannerSSH:        "signature refused by the ssh agent",
	egress.ScannerSSHUnbound: "the login does not name the host's key",
	// Checks of pipelock.
	"body":              "body cannot be checked: too large, compressed or malformed",
	"entropy":           "URL looks like encoded data",
	"subdomain_entropy": "name looks like encoded data",
	"media_policy":      "audio, video or a large image",
	"response_scan":     "response cannot be checked, or is suspicious",
	"crlf_injection":    "line break in the URL",
	"path_traversal":    "URL leads out of a directory",
	"redirect":          "redirected to a refused host",
}

// maxTitleText is the longest notice in a terminal's title, in characters.
const maxTitleText = 200

// refusalTitle is the notice of a refusal, with the command that would allow it.
func refusalTitle(name string, e egress.Entry) string {
	h := egress.HostSummary{Destination: e.Destination(), Refused: 1, Scanner: e.Scanner}
	text := fmt.Sprintf(textRefusedTitle, refusedHost(h))
	if entry, _ := proxy.AllowingEntry(h.Destination, h.Scanner); entry != "" {
		text += " - " + fmt.Sprintf(textAllowCommand, name, entry)
	}
	if runes := []rune(text); len(runes) > maxTitleText {
		text = string(runes[:maxTitleText-1]) + "…"
	}
	return text
}

// proxyText formats the proxy, its image and its memory limit, if the manifest sets it.
func proxyText(p plan.Proxy) string {
	text := proxyImageText(p)
	if p.Memory > 0 {
		text += ", memory " + size(p.Memory)
	}
	return text
}

func proxyImageText(p plan.Proxy) string {
	if p.Image == "" {
		return p.Kind
	}
	p.Kind += " " + p.Version
	if p.Pull {
		return fmt.Sprintf("%s, image %s (to be pulled)", p.Kind, p.Image)
	}
	if strings.Contains(p.Image, "@") {
		return fmt.Sprintf("%s, image %s", p.Kind, p.Image)
	}
	return fmt.Sprintf("%s, image %s@%s", p.Kind, p.Image, p.Digest)
}

// showPipelock prints pipelock's configuration for an agent.
func (a *app) showPipelock(m *manifest.Manifest, agent string) error {
	if agent == "" {
		return withHint(errors.New(textNoPipelock), hintNoPipelock)
	}
	conf, err := plan.PipelockConfig(m, agent)
	if err != nil {
		return err
	}
	_, err = a.stdout.Write(conf)
	return err
}

// showLearned prints what to add to the manifest after a run with --learn: a patch,
// or the entries if bottle cannot edit the manifest.
func (a *app) showLearned(plan *plan.Plan, hosts []egress.HostSummary) {
	defer a.showLearnedRules(plan.Egress.Rules, hosts)
	entries := proxy.LearnedEntries(hosts)
	if len(entries) == 0 {
		return
	}
	patch, err := manifest.PatchAllow(plan.Caller(), plan.Manifest, plan.Bottle, entries)
	if err == nil && patch != "" {
		a.note(textLearned, filepath.Dir(plan.Manifest))
		a.errorf("%s", patch)
		return
	}
	if err == nil {
		return // added to the manifest in the meantime
	}
	a.note(textLearnedByHand, plan.Manifest, err)
	a.note("bottles:\n  %s:\n    egress:\n      allow:", strconv.Quote(plan.Bottle))
	for _, entry := range entries {
		a.note("        - %s", strconv.Quote(entry))
	}
}

// showLearnedRules prints rules for the hosts whose requests were read, except for those of
// which the present rules would have refused nothing.
func (a *app) showLearnedRules(have []hostrule.Rule, hosts []egress.HostSummary) {
	var lines []string
	for _, h := range hosts {
		rules := h.Rules()
		if len(rules) > 0 && h.Learned == 0 && slices.ContainsFunc(have, func(r hostrule.Rule) bool { return r.Host == rules[0].Host }) {
			continue
		}
		for _, r := range rules {
			lines = append(lines, r.YAML())
		}
	}
	if len(lines) > 0 {
		a.note("%s", textLearnedRules)
	}
	for _, line := range lines {
		a.note("  - %s", visible(line))
	}
}
