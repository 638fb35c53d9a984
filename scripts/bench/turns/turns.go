// Package turns is what the benchmarks share: ways to do the same that take turns
// within one run, so that the ratios of their medians carry over to other machines
// where the times do not.
package turns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// Main runs a benchmark until it has ended or is interrupted, and ends the program
// with code 1 after an error.
func Main(bench func(context.Context) error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := bench(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// OnTestHost is an error anywhere else: a benchmark makes containers and images.
func OnTestHost() error {
	if os.Getenv("LAB_ID") == "" {
		return errors.New("this runs on the test host: make bench, or scripts/lab exec -- go run ./scripts/bench/NAME")
	}
	return nil
}

// Program is the path of bottle's program, as `make build` makes it.
func Program() (string, error) {
	program, err := filepath.Abs("bin/bottle")
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(program); err != nil {
		return "", fmt.Errorf("bottle's program: %w (make build)", err)
	}
	return program, nil
}

// Contender is one way to do what is measured. R is what a round of it tells.
type Contender[R any] struct {
	Name    string
	Prepare func(ctx context.Context) error // before each round, not timed; may be nil
	Run     func(ctx context.Context, n int) (R, error)
	Done    []R // of the rounds that are measured
}

// Compete has all contenders do rounds in turn, numbered from 0. Round 0 warms
// caches and is not measured.
func Compete[R any](ctx context.Context, rounds int, all ...*Contender[R]) error {
	for n := range rounds + 1 {
		for i := range all {
			// Each goes first as often as the others.
			c := all[(n+i)%len(all)]
			got, err := c.round(ctx, n)
			if err != nil {
				return fmt.Errorf("%s, round %d: %w", c.Name, n, err)
			}
			if n > 0 {
				c.Done = append(c.Done, got)
			}
		}
	}
	return nil
}

func (c *Contender[R]) round(ctx context.Context, n int) (R, error) {
	if c.Prepare != nil {
		if err := c.Prepare(ctx); err != nil {
			var none R
			return none, fmt.Errorf("prepare: %w", err)
		}
	}
	return c.Run(ctx, n)
}

// Median is that of one of the times that a round tells, 0 if none was measured.
func (c *Contender[R]) Median(of func(R) time.Duration) time.Duration {
	if len(c.Done) == 0 {
		return 0
	}
	var all []time.Duration
	for _, r := range c.Done {
		all = append(all, of(r))
	}
	slices.Sort(all)
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}

// Ratio compares two medians of the same run.
func Ratio[R any](a, b *Contender[R], of func(R) time.Duration) float64 {
	return float64(a.Median(of)) / float64(b.Median(of))
}

// Whole is the time of a round that tells nothing else.
func Whole(d time.Duration) time.Duration { return d }

// Ms writes a time in milliseconds.
func Ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond)) }
