// Command many measures how commands depend on the number of running bottles: it runs
// each with 1 bottle and with 20. It runs inside the test host, after make build:
//
//	scripts/lab exec -- go run ./scripts/bench/many
//
// or, with all other benchmarks, with make bench.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/bot-bottle/bottle/scripts/bench/compare"
)

const benchManifest = `version: 1
bottles:
  bench: {image: "bottle-demo:latest", egress: {allow: [allowed.test]}, limits: {memory: 128MiB}}
agents:
  bench: {bottle: bench, command: [sleep, "100000"]}
`

// first is the bottle that commands name.
const first = "claude-bottle-bench"

// goal is the highest acceptable ratio of list with all bottles to list with one.
const goal = 1.3

func main() {
	rounds := flag.Int("n", 15, "measured rounds")
	bottles := flag.Int("bottles", 20, "bottles to compare with one")
	flag.Parse()
	compare.Main(func(ctx context.Context) error { return bench(ctx, *rounds, *bottles) })
}

// used is what a command has used.
type used struct{ wall, cpu time.Duration }

type bottles struct{ program, dir string }

func bench(ctx context.Context, rounds, n int) (err error) {
	if err := compare.CheckTestHost(); err != nil {
		return err
	}
	program, err := compare.Program()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bottle-bench-")
	if err != nil {
		return err
	}
	b := &bottles{program: program, dir: dir}
	defer func() {
		_, cerr := b.run(context.WithoutCancel(ctx), "cleanup", "--yes")
		err = errors.Join(err, cerr, os.RemoveAll(dir))
	}()
	if err := os.WriteFile(filepath.Join(dir, "bottle.yaml"), []byte(benchManifest), 0o600); err != nil {
		return err
	}
	if err := b.launch(ctx, 1); err != nil {
		return err
	}
	one, err := b.measure(ctx, rounds)
	if err != nil {
		return err
	}
	if err := b.launch(ctx, n-1); err != nil {
		return err
	}
	all, err := b.measure(ctx, rounds)
	if err != nil {
		return err
	}
	return report(one, all, n)
}

func (b *bottles) launch(ctx context.Context, n int) error {
	for range n {
		if _, err := b.run(ctx, "run", "bench", "-d", "-T", "--yes", "--trust", "--proxy", "builtin"); err != nil {
			return err
		}
	}
	return nil
}

// commands are measured. A dry run makes the plan of a launch.
var commands = [][]string{
	{"list"},
	{"exec", first, "true"},
	{"egress", first},
	{"run", "bench", "--dry-run", "--proxy", "builtin"},
}

// measure runs each command in turn and returns the medians.
func (b *bottles) measure(ctx context.Context, rounds int) ([]used, error) {
	results := make([][]used, len(commands))
	for range rounds + 1 { // the first for warming up
		for i, args := range commands {
			u, err := b.run(ctx, args...)
			if err != nil {
				return nil, err
			}
			results[i] = append(results[i], u)
		}
	}
	var out []used
	for _, r := range results {
		out = append(out, used{
			median(r[1:], func(u used) time.Duration { return u.wall }), median(r[1:], func(u used) time.Duration { return u.cpu }),
		})
	}
	return out, nil
}

func median(list []used, of func(used) time.Duration) time.Duration {
	var all []time.Duration
	for _, u := range list {
		all = append(all, of(u))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

func (b *bottles) run(ctx context.Context, args ...string) (used, error) {
	cmd := exec.CommandContext(ctx, b.program, args...)
	cmd.Dir = b.dir
	start := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return used{}, fmt.Errorf("bottle %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return used{time.Since(start), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}, nil
}

func report(one, all []used, n int) error {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(t, "bottle\t1 bottle\t%d bottles\tratio\tCPU with 1\twith %d\t\n", n, n)
	for i, args := range commands {
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%.2f\t%s\t%s\t\n", strings.Join(args, " "), compare.Ms(one[i].wall), compare.Ms(all[i].wall),
			float64(all[i].wall)/float64(one[i].wall), compare.Ms(one[i].cpu), compare.Ms(all[i].cpu))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Printf("goal: list at most %.1f\n", goal)
	return nil
}
