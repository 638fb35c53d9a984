package proxy

import (
	"context"
	"fmt"
	"iter"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/bot-bottle/bottle/egress"
)

// proxyLog is the egress log's file of a bottle, in its state folder.
func (p *Manager) LogFile(name string) string { return filepath.Join(p.state, name, "egress.log") }

// EgressLog yields the egress log of a bottle as far as it is kept (16 MiB),
// lines before since left out. With follow it goes on with what comes, until
// ctx ends or the bottle is gone. An error is yielded last.
func (p *Manager) Log(ctx context.Context, name string, since time.Time, follow bool) iter.Seq2[egress.Entry, error] {
	return func(yield func(egress.Entry, error) bool) {
		log, err := egress.OpenLog(ctx, p.LogFile(name), follow)
		if err != nil {
			yield(egress.Entry{}, fmt.Errorf("egress log of %s: %w", name, err))
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
func (p *Manager) Summary(ctx context.Context, name string, since time.Time) ([]egress.HostSummary, error) {
	return egress.Summarize(p.Log(ctx, name, since, false))
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
func LearntEntries(hosts []egress.HostSummary) []string {
	var out []string
	for _, h := range hosts {
		if entry := AllowingEntry(h.Destination, h.Scanner); h.Learnt > 0 && entry != "" {
			out = append(out, entry)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
