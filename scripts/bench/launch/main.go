// Command launch measures the launch of a bottle up to the end of a first exec,
// and its teardown. It compares bottle with a minimal containerd client (one
// network, no proxy, no concurrency, the same runsc and CNI plugins) and with
// runsc alone. It runs inside the test host:
//
//	scripts/lab exec -- go run ./scripts/bench/launch
//
// or, with all other benchmarks, with make bench.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/bot-bottle/bottle/scripts/bench/compare"
	"github.com/bot-bottle/bottle/scripts/bench/results"
)

// round is the result of a launch and its teardown.
type round struct {
	launch   time.Duration // up to the end of the first exec
	teardown time.Duration
	steps    []step // in the order of their ends
}

type step struct {
	name        string
	begin, took time.Duration
}

type contender = compare.Contender[round]

// Goals for the ratios of bottle's times to the minimal client's, which creates neither a
// proxy nor a second network.
const (
	goalLaunch   = 1.15
	goalTeardown = 1.0
)

func main() {
	rounds := flag.Int("n", 20, "measured rounds, after one for warming up")
	steps := flag.Bool("steps", false, "also print the medians of the steps")
	flag.Parse()
	compare.Main(func(ctx context.Context) error { return bench(ctx, *rounds, *steps) })
}

func bench(ctx context.Context, rounds int, steps bool) (err error) {
	if err := compare.CheckTestHost(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("/run", "bottle-bench-")
	if err != nil {
		return err
	}
	defer func() {
		if rerr := os.RemoveAll(dir); err == nil {
			err = rerr
		}
	}()
	b, err := newBottle(ctx, filepath.Join(dir, "bottle"))
	if err != nil {
		return fmt.Errorf("bottle: %w", err)
	}
	defer b.close()
	m, err := newMinimal(filepath.Join(dir, "minimal"))
	if err != nil {
		return fmt.Errorf("minimal client: %w", err)
	}
	defer m.close()
	r, err := newBare(ctx, m, filepath.Join(dir, "bare"))
	if err != nil {
		return fmt.Errorf("bare runsc: %w", err)
	}
	defer r.close()
	all := []*contender{{Name: "bottle", Run: b.round}, {Name: "minimal client", Run: m.round}, {Name: "runsc run", Run: r.round}}
	if err := compare.Run(ctx, rounds, all...); err != nil {
		return err
	}
	return report(all, rounds, steps)
}

func report(all []*contender, rounds int, steps bool) error {
	launch := func(r round) time.Duration { return r.launch }
	teardown := func(r round) time.Duration { return r.teardown }
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(t, "median of %d\tfirst exec done\tteardown\t\n", rounds)
	for _, c := range all {
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t\n", c.Name, compare.Ms(c.Median(launch)), compare.Ms(c.Median(teardown)))
	}
	for _, other := range all[1:] {
		teardownRatio := "-" // runsc's launch includes its teardown
		if other.Median(teardown) > 0 {
			teardownRatio = fmt.Sprintf("%.2f", compare.Ratio(all[0], other, teardown))
		}
		_, _ = fmt.Fprintf(t, "bottle / %s\t%.2f\t%s\t\n", other.Name, compare.Ratio(all[0], other, launch), teardownRatio)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Printf("goals: bottle / minimal client at most %.2f and %.2f\n", goalLaunch, goalTeardown)
	if steps {
		printSteps(all[0])
		printSteps(all[1])
	}
	r := results.Result{Benchmark: "launch", Ratios: []results.Ratio{
		{Name: "launch / minimal client", Value: compare.Ratio(all[0], all[1], launch), Goal: goalLaunch},
		{Name: "teardown / minimal client", Value: compare.Ratio(all[0], all[1], teardown), Goal: goalTeardown},
		{Name: "launch / runsc run", Value: compare.Ratio(all[0], all[2], launch)},
	}}
	for _, c := range all {
		r.Figures = append(r.Figures, c.Figure(c.Name, launch))
		if c.Median(teardown) > 0 {
			r.Figures = append(r.Figures, c.Figure(c.Name+", teardown", teardown))
		}
	}
	return results.Record(r)
}

func printSteps(c *contender) {
	rounds := c.Results
	var names []string
	for _, s := range rounds[0].steps {
		names = append(names, s.name)
	}
	fmt.Printf("\n%-20s %10s %10s\n", c.Name, "start", "duration")
	for _, name := range names {
		find := func(of func(step) time.Duration) func(round) time.Duration {
			return func(r round) time.Duration {
				i := slices.IndexFunc(r.steps, func(s step) bool { return s.name == name })
				if i < 0 {
					return 0
				}
				return of(r.steps[i])
			}
		}
		begin := c.Median(find(func(s step) time.Duration { return s.begin }))
		took := c.Median(find(func(s step) time.Duration { return s.took }))
		fmt.Printf("%-20s %10s %10s\n", name, compare.Ms(begin), compare.Ms(took))
	}
}
