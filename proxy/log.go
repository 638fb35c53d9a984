package proxy

import (
	"context"
	"fmt"
	"iter"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/segment"
	"github.com/bot-bottle/bottle/runtime"
)

// LogFile returns the path of a bottle's egress log, in its state directory.
func (m *Manager) LogFile(name string) string { return filepath.Join(m.stateDir, name, "egress.log") }

// FrontLogFile returns the path of the log of the process in front of a bottle's proxy.
func (m *Manager) FrontLogFile(name string) string {
	return filepath.Join(m.stateDir, name, runtime.FrontLog)
}

// logFiles returns the paths of all logs of a bottle. Not every bottle has each.
func (m *Manager) logFiles(name string) []string {
	return []string{m.LogFile(name), m.FrontLogFile(name), m.SSHLogFile(name)}
}

// SSHLogFile returns the path of the log of the signatures of a bottle's ssh agent.
func (m *Manager) SSHLogFile(name string) string { return filepath.Join(m.stateDir, name, "ssh.log") }

// Log yields the retained egress log of a bottle, the log of the process in front of its
// proxy and the log of its ssh agent (up to 16 MiB each), by time and without lines before since. With follow it continues with new lines until ctx ends or the
// bottle is removed. An error is yielded last.
func (m *Manager) Log(ctx context.Context, name string, since time.Time, follow bool) iter.Seq2[egress.Entry, error] {
	return func(yield func(egress.Entry, error) bool) {
		for entry, err := range egress.MergeLogs(ctx, follow, m.logFiles(name)...) {
			if err != nil {
				yield(egress.Entry{}, fmt.Errorf("read egress log of %s: %w", name, err))
				return
			}
			if !entry.Before(since) && !yield(entry, nil) {
				return
			}
		}
	}
}

// StartVersion returns the version that a bottle's proxy logged when it first started.
// It waits for that line until ctx ends, and then returns an empty version.
func (m *Manager) StartVersion(ctx context.Context, name string) string {
	for entry, err := range egress.MergeLogs(ctx, true, m.LogFile(name)) {
		if err != nil {
			break
		}
		if entry.Event == egress.EventStartup {
			return entry.Version
		}
	}
	return ""
}

// samplePause is the pause between two reads of Sample.
const samplePause = time.Second

// Sample yields new entries of the logs of a bottle's proxy and ssh agent, but not all of
// them if there are many (egress.SampleLog): it is for a display next to a session, which
// must not let the agent use CPU time on the host. It ends with ctx or the bottle.
func (m *Manager) Sample(ctx context.Context, name string) iter.Seq2[egress.Entry, error] {
	return func(yield func(egress.Entry, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		type item struct {
			entry egress.Entry
			err   error
		}
		items := make(chan item)
		var wg sync.WaitGroup
		for _, path := range m.logFiles(name) {
			wg.Go(func() {
				for entry, err := range egress.SampleLog(ctx, path, samplePause) {
					select {
					case items <- item{entry, err}:
					case <-ctx.Done():
						return
					}
				}
			})
		}
		go func() { wg.Wait(); close(items) }()
		defer func() {
			cancel()
			wg.Wait()
		}()
		for i := range items {
			if !yield(i.entry, i.err) {
				return
			}
		}
	}
}

// Summary aggregates the egress log of a bottle by host and port, from since on,
// refused destinations first.
func (m *Manager) Summary(ctx context.Context, name string, since time.Time) ([]egress.HostSummary, error) {
	return egress.Summarize(m.Log(ctx, name, since, false))
}

// AllowingEntry returns the policy entry, HOST or HOST:PORT, that would allow a
// refused destination. It is empty if the request was refused for another reason
// than its host or port, or if an entry alone does not allow it; the problem says
// why.
func AllowingEntry(destination, scanner string) (string, *egress.Problem) {
	if scanner != "allowlist" && scanner != "port" {
		return "", nil
	}
	entry := destination
	for _, port := range []string{":443", ":80"} {
		entry = strings.TrimSuffix(entry, port)
	}
	rule, err := egress.ParseRule(entry)
	if err != nil {
		return "", nil //nolint:nilerr // the log may name a host that no entry can
	}
	if p := allowProblem(egress.Entries{Allow: []string{rule.String()}}, rule); p != nil {
		return "", p
	}
	return rule.String(), nil
}

// allowProblem returns the reason why an allowed entry of a policy does not work, or
// nil.
func allowProblem(entries egress.Entries, rule egress.Rule) *egress.Problem {
	for _, p := range entries.Problems(segment.Agent.Masked()) {
		if have, err := egress.ParseRule(p.Entry); p.List == "allow" && err == nil && have == rule {
			return p
		}
	}
	return nil
}

// LearnedEntries returns the policy entries that would allow the destinations that
// a run with --learn recorded.
func LearnedEntries(hosts []egress.HostSummary) []string {
	var out []string
	for _, h := range hosts {
		if entry, _ := AllowingEntry(h.Destination, h.Scanner); h.Learned > 0 && entry != "" {
			out = append(out, entry)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
