// Command launch measures how long bottle takes to its first answered exec and
// to its end, beside the same done by a minimal client of containerd (one
// network, no proxy, one step after the other, the same runsc and CNI plugins)
// and by runsc alone. The three take turns, so that the ratios of their medians
// carry over where the times do not. It runs inside the test host:
//
//	scripts/lab exec -- go run ./scripts/bench/launch
//
// or, with all other benchmarks, make bench.
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

	"github.com/bot-bottle/bottle/scripts/bench/turns"
)

// round is one launch and its end.
type round struct {
	launch   time.Duration // to the first exec answered
	teardown time.Duration
	steps    []step // in the order in which they ended
}

type step struct {
	name        string
	begin, took time.Duration
}

// contender is one way to start an agent.
type contender = turns.Contender[round]

// goal is how many times the minimal client's time bottle may take, although it
// has a proxy and a second network to make.
const goal = 1.3

func main() {
	rounds := flag.Int("n", 20, "rounds that are measured; one more goes before")
	steps := flag.Bool("steps", false, "print the medians of their steps, too")
	flag.Parse()
	turns.Main(func(ctx context.Context) error { return bench(ctx, *rounds, *steps) })
}

func bench(ctx context.Context, rounds int, steps bool) (err error) {
	if err := turns.OnTestHost(); err != nil {
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
	if err := turns.Compete(ctx, rounds, all...); err != nil {
		return err
	}
	return report(all, rounds, steps)
}

func report(all []*contender, rounds int, steps bool) error {
	launch := func(r round) time.Duration { return r.launch }
	teardown := func(r round) time.Duration { return r.teardown }
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(t, "median of %d\tfirst exec answered\tteardown\t\n", rounds)
	for _, c := range all {
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t\n", c.Name, turns.Ms(c.Median(launch)), turns.Ms(c.Median(teardown)))
	}
	for _, other := range all[1:] {
		end := "-" // runsc's own is within its launch
		if other.Median(teardown) > 0 {
			end = fmt.Sprintf("%.2f", turns.Ratio(all[0], other, teardown))
		}
		_, _ = fmt.Fprintf(t, "bottle / %s\t%.2f\t%s\t\n", other.Name, turns.Ratio(all[0], other, launch), end)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Printf("goal: bottle / minimal client at most %.1f for each\n", goal)
	if steps {
		printSteps(all[0])
		printSteps(all[1])
	}
	return nil
}

func printSteps(c *contender) {
	rounds := c.Done
	var names []string
	for _, s := range rounds[0].steps {
		names = append(names, s.name)
	}
	fmt.Printf("\n%-20s %10s %10s\n", c.Name, "begins", "takes")
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
		fmt.Printf("%-20s %10s %10s\n", name, turns.Ms(begin), turns.Ms(took))
	}
}
