// Command stream compares the throughput of sessions that PID 1 of the sandbox starts with
// that of execs by containerd, which sessions of another user are: 100 MB of output, and of
// input.
//
// It runs inside the test host, after make build:
//
//	scripts/lab exec -- go run ./scripts/bench/stream
//
// or, with all other benchmarks, with make bench.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"time"

	"github.com/bot-bottle/bottle/scripts/bench/compare"
	"github.com/bot-bottle/bottle/scripts/bench/results"
)

const benchManifest = `version: 1
bottles:
  bench: {image: "bottle-demo:latest", egress: {allow: [allowed.test]}, limits: {memory: 128MiB}}
agents:
  stay: {bottle: bench, command: [sleep, "100000"]}
`

const (
	stays = "claude-bottle-stay"
	// other is a user other than the agent's: containerd starts its sessions.
	other = "12345"
	size  = 100 << 20
	// goal is the highest acceptable ratio of a session's time to an exec's.
	goal = 1.0
)

func main() {
	rounds := flag.Int("n", 7, "measured rounds, after one for warming up")
	flag.Parse()
	compare.Main(func(ctx context.Context) error { return bench(ctx, *rounds) })
}

func bench(ctx context.Context, rounds int) (err error) {
	b, err := compare.NewBottle(benchManifest)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	if err := b.Launch(ctx, "stay"); err != nil {
		return err
	}
	r := results.Result{Benchmark: "stream"}
	for _, way := range []struct{ name, script string }{
		{"output", fmt.Sprintf("head -c %d /dev/zero", size)},
		{"input", fmt.Sprintf("test $(wc -c) = %d", size)},
	} {
		timed := func(name string, flags ...string) *compare.Contender[time.Duration] {
			return &compare.Contender[time.Duration]{Name: name + ", " + way.name, Run: func(ctx context.Context, _ int) (time.Duration, error) {
				args := append(append([]string{"exec", "-T"}, flags...), stays, "sh", "-c", way.script)
				cmd := b.Command(ctx, args...)
				if way.name == "input" {
					cmd.Stdin = io.LimitReader(zeros{}, size)
				}
				var got count
				cmd.Stdout = &got
				took, _, err := compare.Command(cmd)
				if err == nil && way.name == "output" && got != size {
					err = fmt.Errorf("%d bytes of output, want %d", got, size)
				}
				return took, err
			}}
		}
		ours, theirs := timed("PID 1"), timed("containerd", "-u", other)
		if err := compare.Run(ctx, rounds, ours, theirs); err != nil {
			return err
		}
		ratio := results.Ratio{Name: "100 MB of " + way.name + " / exec by containerd", Value: compare.Ratio(ours, theirs, compare.Self), Goal: goal}
		r.Ratios = append(r.Ratios, ratio)
		for _, c := range []*compare.Contender[time.Duration]{ours, theirs} {
			f := c.Figure(c.Name, compare.Self)
			r.Figures = append(r.Figures, f)
			fmt.Printf("%s: %.0f %s (%.0f to %.0f)\n", f.Name, f.Median, f.Unit, f.Low, f.High)
		}
		fmt.Printf("%s: %.2f, goal: at most %.1f\n", ratio.Name, ratio.Value, ratio.Goal)
	}
	return results.Record(r)
}

// zeros is an endless input, read in parts as large as a pipe.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// count counts what is written.
type count int

func (c *count) Write(p []byte) (int, error) {
	*c += count(len(p))
	return len(p), nil
}
