package bottle

import (
	"context"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/bot-bottle/bottle/egress"
)

// EgressEntry is one line of a bottle's egress log.
type EgressEntry = egress.Entry

// HostSummary is what a bottle has asked of one host.
type HostSummary = egress.HostSummary

// Verdicts of an EgressEntry.
const (
	VerdictAllowed = egress.VerdictAllowed
	VerdictRefused = egress.VerdictRefused
	VerdictLearnt  = egress.VerdictLearnt
	VerdictFailed  = egress.VerdictFailed
	VerdictClosed  = egress.VerdictClosed
)

// proxyLog is the egress log's file of a bottle, in its state folder.
func (e *Engine) proxyLog(name string) string { return filepath.Join(e.stateDir(name), "egress.log") }

// EgressLog yields the egress log of a bottle as far as it is kept (16 MiB),
// lines before since left out. With follow it goes on with what comes, until
// ctx ends or the bottle is gone. An error is yielded last.
func (e *Engine) EgressLog(ctx context.Context, name string, since time.Time, follow bool) iter.Seq2[EgressEntry, error] {
	return func(yield func(EgressEntry, error) bool) {
		log, err := egress.OpenLog(ctx, e.proxyLog(name), follow)
		if err != nil {
			yield(EgressEntry{}, fmt.Errorf("egress log of %s: %w", name, err))
			return
		}
		defer func() { _ = log.Close() }() // read only
		for entry, err := range egress.ParseLog(log) {
			if err == nil && entry.Before(since) {
				continue
			}
			if !yield(entry, err) {
				return
			}
		}
	}
}

// EgressSummary adds the egress log of a bottle up by host and port, from since
// on, what was refused first.
func (e *Engine) EgressSummary(ctx context.Context, name string, since time.Time) ([]HostSummary, error) {
	return egress.Summarize(e.EgressLog(ctx, name, since, false))
}

// AllowingEntry is the entry of a policy that would allow what was refused, HOST
// or HOST:PORT; empty where none would, as the host was not why.
func AllowingEntry(destination, scanner string) string {
	if scanner != "allowlist" && scanner != "port" {
		return ""
	}
	entry := destination
	for _, port := range []string{":443", ":80"} {
		entry = strings.TrimSuffix(entry, port)
	}
	rule, err := egress.ParseRule(entry)
	if err != nil {
		return ""
	}
	return rule.String()
}

// LearntEntries are the entries of a policy that would allow what a run with
// --learn has noted.
func LearntEntries(hosts []HostSummary) []string {
	var out []string
	for _, h := range hosts {
		if entry := AllowingEntry(h.Destination, h.Scanner); h.Learnt > 0 && entry != "" {
			out = append(out, entry)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// RunProxy is the built-in egress proxy's process, until ctx ends; each value
// of reload has it read its configuration again.
func RunProxy(ctx context.Context, config string, reload <-chan os.Signal, stdout, stderr io.Writer) error {
	return egress.Main(ctx, config, reload, stdout, stderr)
}

// KeepProxyLog is the process that writes a proxy's log to file, until all of
// the proxy's streams have ended; a value of stop has it give up what it cannot
// write.
func KeepProxyLog(file string, stop <-chan os.Signal, streams ...io.Reader) error {
	return egress.KeepLog(file, stop, streams...)
}
