// Command warm compares `bottle run` of Claude Code on a terminal, from its start to Claude
// Code's prompt: in a new bottle, and in a prepared one in which it was started ahead. It runs
// inside a test host with Claude Code (scripts/lab up --with-claude):
//
//	scripts/lab exec -- go run ./scripts/bench/warm
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
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/creack/pty"

	"github.com/bot-bottle/bottle/scripts/bench/compare"
	"github.com/bot-bottle/bottle/scripts/bench/results"
)

// The key is no secret: nothing is asked with it.
const benchManifest = `version: 1
bottles:
  bench: {image: "` + compare.ClaudeImage + `", proxy: {kind: builtin}, env: {ANTHROPIC_API_KEY: {from: BENCH_KEY}}}
agents:
  cold: {kind: claude, unattended: true, bottle: bench}
  warm: {kind: claude, unattended: true, bottle: bench, pool: {size: 1, warm: true}}
`

// goal is the highest acceptable ratio of a warm run's time to a cold one's.
const goal = 0.25

type contender = compare.Contender[time.Duration]

func main() {
	rounds := flag.Int("n", 5, "measured rounds, after one for warming up")
	flag.Parse()
	compare.Main(func(ctx context.Context) error { return bench(ctx, *rounds) })
}

func bench(ctx context.Context, rounds int) (err error) {
	b, err := compare.NewClaude(ctx, benchManifest, "BENCH_KEY=sk-ant-api03-"+strings.Repeat("bench", 8)+"AA")
	if b == nil || err != nil {
		return err
	}
	s := &scene{b}
	defer func() { err = errors.Join(err, s.Do(context.Background(), "pool", "drain"), os.RemoveAll(b.Dir)) }()
	// Each finds a bottle that was prepared, and nothing is being prepared meanwhile.
	cold := &contender{Name: "cold", Prepare: s.fill, Run: s.run("cold")}
	warm := &contender{Name: "warm", Prepare: s.fill, Run: s.run("warm")}
	if err := compare.Run(ctx, rounds, cold, warm); err != nil {
		return err
	}
	ratio := compare.Ratio(warm, cold, compare.Self)
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(t, "median of %d, bottle run to Claude Code's prompt\t\tratio to cold\t\n", rounds)
	_, _ = fmt.Fprintf(t, "cold\t%s\t1.00\t\nwarm\t%s\t%.2f\t\n", compare.Ms(cold.Median(compare.Self)), compare.Ms(warm.Median(compare.Self)), ratio)
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Printf("goal: warm / cold at most %.2f\n", goal)
	return results.Record(results.Result{
		Benchmark: "warm",
		Figures:   []results.Figure{cold.Figure("cold", compare.Self), warm.Figure("warm", compare.Self)},
		Ratios:    []results.Ratio{{Name: "warm / cold", Value: ratio, Goal: goal}},
	})
}

type scene struct{ *compare.Bottle }

// fill fills the pool, and waits for a process that is doing so.
func (s *scene) fill(ctx context.Context) error {
	return s.Do(ctx, "pool", "fill", "--trust", "warm")
}

// run measures a run up to the prompt, and ends it.
func (s *scene) run(agent string) func(context.Context, int) (time.Duration, error) {
	return func(ctx context.Context, _ int) (took time.Duration, err error) {
		ctx, cancel := context.WithTimeout(ctx, compare.ClaudePatience)
		defer cancel()
		run := s.Command(ctx, "run", agent, "--yes", "--trust", "--quiet")
		start := time.Now()
		terminal, err := pty.StartWithSize(run, &pty.Winsize{Rows: 40, Cols: 120})
		if err != nil {
			return 0, err
		}
		defer func() { _ = terminal.Close() }() // nothing was written
		err = compare.WaitFor(terminal, compare.ClaudePrompt)
		took = time.Since(start)
		go func() { _, _ = io.Copy(io.Discard, terminal) }()
		if serr := run.Process.Signal(syscall.SIGTERM); serr != nil {
			return 0, errors.Join(err, serr)
		}
		_ = run.Wait() // it was ended by the signal
		return took, err
	}
}
