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
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/creack/pty"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/scripts/bench/compare"
	"github.com/bot-bottle/bottle/scripts/bench/results"
)

const image = "docker.io/library/claude-bottle:claude"

// The key is no secret: nothing is asked with it.
const benchManifest = `version: 1
bottles:
  bench: {image: "` + image + `", proxy: {kind: builtin}, env: {ANTHROPIC_API_KEY: {from: BENCH_KEY}}}
agents:
  cold: {kind: claude, unattended: true, bottle: bench}
  warm: {kind: claude, unattended: true, bottle: bench, pool: {size: 1, warm: true}}
`

// goal is the highest acceptable ratio of a warm run's time to a cold one's.
const goal = 0.25

// prompt is on Claude Code's screen when it waits for input.
const prompt = "shift+tab to cycle"

// patience bounds the wait for the prompt.
const patience = 2 * time.Minute

type contender = compare.Contender[time.Duration]

func main() {
	rounds := flag.Int("n", 5, "measured rounds, after one for warming up")
	flag.Parse()
	compare.Main(func(ctx context.Context) error { return bench(ctx, *rounds) })
}

func bench(ctx context.Context, rounds int) (err error) {
	if err := compare.CheckTestHost(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("/run", "bottle-bench-")
	if err != nil {
		return err
	}
	s := &scene{dir: dir}
	defer func() { err = errors.Join(err, s.close(), os.RemoveAll(dir)) }()
	if there, err := s.open(ctx); !there || err != nil {
		return err
	}
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

type scene struct{ dir, program string }

// open reports whether the test host has Claude Code.
func (s *scene) open(ctx context.Context) (bool, error) {
	cfg, err := compare.EngineConfig()
	if err != nil {
		return false, err
	}
	s.program = cfg.Program
	e, err := bottle.Open(ctx, cfg)
	if err != nil {
		return false, err
	}
	if _, err := e.Image(ctx, image); err != nil {
		fmt.Printf("left out: %v\n", err)
		return false, e.Close()
	}
	return true, errors.Join(os.WriteFile(filepath.Join(s.dir, "bottle.yaml"), []byte(benchManifest), 0o600), e.Close())
}

func (s *scene) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, s.program, args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "HOME="+s.dir, "TERM=xterm-256color", "BENCH_KEY=sk-ant-api03-"+strings.Repeat("bench", 8)+"AA")
	return cmd
}

func (s *scene) bottle(ctx context.Context, args ...string) error {
	out, err := s.command(ctx, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("bottle %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return err
}

func (s *scene) close() error {
	if s.program == "" {
		return nil
	}
	return s.bottle(context.Background(), "pool", "drain")
}

// fill fills the pool, and waits for a process that is doing so.
func (s *scene) fill(ctx context.Context) error {
	return s.bottle(ctx, "pool", "fill", "--trust", "warm")
}

// run measures a run up to the prompt, and ends it.
func (s *scene) run(agent string) func(context.Context, int) (time.Duration, error) {
	return func(ctx context.Context, _ int) (took time.Duration, err error) {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		run := s.command(ctx, "run", agent, "--yes", "--trust", "--quiet")
		start := time.Now()
		terminal, err := pty.StartWithSize(run, &pty.Winsize{Rows: 40, Cols: 120})
		if err != nil {
			return 0, err
		}
		defer func() { _ = terminal.Close() }() // nothing was written
		err = compare.WaitFor(terminal, prompt)
		took = time.Since(start)
		go func() { _, _ = io.Copy(io.Discard, terminal) }()
		if serr := run.Process.Signal(syscall.SIGTERM); serr != nil {
			return 0, errors.Join(err, serr)
		}
		_ = run.Wait() // it was ended by the signal
		return took, err
	}
}
