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
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"
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
type contender struct {
	name string
	run  func(ctx context.Context, n int) (round, error)
	done []round
}

// goal is how many times the minimal client's time bottle may take, although it
// has a proxy and a second network to make.
const goal = 1.3

func main() {
	rounds := flag.Int("n", 20, "rounds that are measured; one more goes before")
	steps := flag.Bool("steps", false, "print the medians of their steps, too")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := bench(ctx, *rounds, *steps)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, rounds int, steps bool) (err error) {
	if os.Getenv("LAB_ID") == "" {
		return fmt.Errorf("this runs on the test host: make bench, or scripts/lab exec -- go run ./scripts/bench/launch")
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
	all := []*contender{{name: "bottle", run: b.round}, {name: "minimal client", run: m.round}, {name: "runsc run", run: r.round}}
	for n := range rounds + 1 {
		for i := range all {
			// Each goes first as often as the others.
			c := all[(n+i)%len(all)]
			got, err := c.run(ctx, n)
			if err != nil {
				return fmt.Errorf("%s, round %d: %w", c.name, n, err)
			}
			if n > 0 { // the first round warms caches
				c.done = append(c.done, got)
			}
		}
	}
	return report(all, rounds, steps)
}

func report(all []*contender, rounds int, steps bool) error {
	launch := func(r round) time.Duration { return r.launch }
	teardown := func(r round) time.Duration { return r.teardown }
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(t, "median of %d\tfirst exec answered\tteardown\t\n", rounds)
	for _, c := range all {
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t\n", c.name, ms(median(c.done, launch)), ms(median(c.done, teardown)))
	}
	for _, other := range all[1:] {
		end := "-" // runsc's own is within its launch
		if median(other.done, teardown) > 0 {
			end = fmt.Sprintf("%.2f", ratio(all[0], other, teardown))
		}
		_, _ = fmt.Fprintf(t, "bottle / %s\t%.2f\t%s\t\n", other.name, ratio(all[0], other, launch), end)
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

// ratio compares medians of the same run.
func ratio(a, b *contender, of func(round) time.Duration) float64 {
	return float64(median(a.done, of)) / float64(median(b.done, of))
}

func median(rounds []round, of func(round) time.Duration) time.Duration {
	var all []time.Duration
	for _, r := range rounds {
		all = append(all, of(r))
	}
	slices.Sort(all)
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}

func printSteps(c *contender) {
	rounds := c.done
	var names []string
	for _, s := range rounds[0].steps {
		names = append(names, s.name)
	}
	fmt.Printf("\n%-20s %10s %10s\n", c.name, "begins", "takes")
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
		begin := median(rounds, find(func(s step) time.Duration { return s.begin }))
		took := median(rounds, find(func(s step) time.Duration { return s.took }))
		fmt.Printf("%-20s %10s %10s\n", name, ms(begin), ms(took))
	}
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond)) }
