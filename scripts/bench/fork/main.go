// Command fork compares bottles with Claude Code at its prompt: new, forked from a running one,
// and resumed. Each is measured from the start of bottle's command until a client that attaches
// sees the prompt. It runs inside a test host with Claude Code (scripts/lab up --with-claude):
//
//	scripts/lab exec -- go run ./scripts/bench/fork
//
// or, with all other benchmarks, with make bench. Without Claude Code it is left out.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/creack/pty"

	"github.com/bot-bottle/bottle/scripts/bench/compare"
	"github.com/bot-bottle/bottle/scripts/bench/results"
)

// The key is no secret: nothing is asked with it.
const benchManifest = `version: 1
bottles:
  bench: {image: "` + compare.ClaudeImage + `", proxy: {kind: builtin}, env: {ANTHROPIC_API_KEY: sk-ant-api03-bench-bench-bench-bench}, egress: {allow: [api.anthropic.com]}}
agents:
  claude: {kind: claude, bottle: bench}
`

// goal is the highest acceptable ratio of a fork's time to that of a new bottle.
const goal = 0.4

type contender = compare.Contender[time.Duration]

func main() {
	rounds := flag.Int("n", 7, "measured rounds, after one for warming up")
	flag.Parse()
	compare.Main(func(ctx context.Context) error { return bench(ctx, *rounds) })
}

func bench(ctx context.Context, rounds int) (err error) {
	b, err := compare.NewClaude(ctx, benchManifest)
	if b == nil || err != nil {
		return err
	}
	s := &scene{b}
	defer func() {
		err = errors.Join(err, s.Do(context.Background(), "cleanup", "--yes", "--discard"), os.RemoveAll(b.Dir))
	}()
	if err := s.start(ctx, "source"); err != nil {
		return err
	}
	cold := &contender{Name: "cold", Run: s.remove("cold", func(ctx context.Context) error { return s.start(ctx, "cold") })}
	fork := &contender{Name: "fork", Run: s.remove("source-f1", func(ctx context.Context) error { return s.then(ctx, "source-f1", "fork", "source") })}
	resume := &contender{
		Name: "resume", Prepare: func(ctx context.Context) error { return s.Do(ctx, "suspend", "source") },
		Run: measured(func(ctx context.Context) error { return s.then(ctx, "source", "resume", "source") }),
	}
	if err := compare.Run(ctx, rounds, cold, fork, resume); err != nil {
		return err
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(t, "median of %d, to Claude Code's prompt\t\tratio to cold\t\n", rounds)
	r := results.Result{Benchmark: "fork"}
	for _, c := range []*contender{cold, fork, resume} {
		_, _ = fmt.Fprintf(t, "%s\t%s\t%.2f\t\n", c.Name, compare.Ms(c.Median(compare.Self)), compare.Ratio(c, cold, compare.Self))
		r.Figures = append(r.Figures, c.Figure(c.Name, compare.Self))
		if c != cold {
			r.Ratios = append(r.Ratios, results.Ratio{Name: c.Name + " / cold", Value: compare.Ratio(c, cold, compare.Self), Goal: goal})
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Printf("goal: fork / cold at most %.2f\n", goal)
	return results.Record(r)
}

type scene struct{ *compare.Bottle }

// start starts a bottle and waits for its prompt.
func (s *scene) start(ctx context.Context, name string) error {
	return s.then(ctx, name, "run", "claude", "-d", "--yes", "--trust", "--quiet", "--name", name)
}

// then runs a command, and waits for the prompt of a bottle that it has started.
func (s *scene) then(ctx context.Context, name string, args ...string) error {
	if err := s.Do(ctx, args...); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, compare.ClaudePatience)
	defer cancel()
	attach := s.Command(ctx, "attach", name)
	terminal, err := pty.StartWithSize(attach, &pty.Winsize{Rows: 40, Cols: 120})
	if err != nil {
		return err
	}
	defer func() { _ = terminal.Close() }() // nothing was written that matters
	err = compare.WaitFor(terminal, compare.ClaudePrompt)
	_, _ = terminal.WriteString("\x10\x11") // the detach keys
	go func() { _, _ = io.Copy(io.Discard, terminal) }()
	return errors.Join(err, attach.Wait())
}

func measured(fn func(context.Context) error) func(context.Context, int) (time.Duration, error) {
	return func(ctx context.Context, _ int) (time.Duration, error) {
		start := time.Now()
		err := fn(ctx)
		return time.Since(start), err
	}
}

// remove measures what starts a bottle, and removes that.
func (s *scene) remove(name string, fn func(context.Context) error) func(context.Context, int) (time.Duration, error) {
	return func(ctx context.Context, n int) (time.Duration, error) {
		took, err := measured(fn)(ctx, n)
		return took, errors.Join(err, s.Do(context.WithoutCancel(ctx), "rm", "-f", name))
	}
}
