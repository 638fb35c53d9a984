// Package compare runs benchmarks that compare several ways to do the same. The
// contenders take turns within one run, because the ratios of their medians, other
// than the times, are comparable between machines.
package compare

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/bot-bottle/bottle/scripts/bench/results"
)

// Main runs a benchmark with a context that SIGINT and SIGTERM cancel. It exits
// with code 1 on an error.
func Main(bench func(context.Context) error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := bench(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// CheckTestHost returns an error outside the test host, because benchmarks create
// containers and images.
func CheckTestHost() error {
	if os.Getenv("LAB_ID") == "" {
		return errors.New("not on the test host (make bench, or scripts/lab exec -- go run ./scripts/bench/NAME)")
	}
	return nil
}

// Program returns the path of the bottle program built by `make build`.
func Program() (string, error) {
	program, err := filepath.Abs("bin/bottle")
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(program); err != nil {
		return "", fmt.Errorf("find the bottle program: %w (make build)", err)
	}
	return program, nil
}

// Contender is one of the ways to compare. R is the result of a round.
type Contender[R any] struct {
	Name    string
	Prepare func(ctx context.Context) error // called before each round; may be nil
	Run     func(ctx context.Context, n int) (R, error)
	Results []R // of the measured rounds
}

// Run runs the contenders' rounds in turn. Round 0 warms up caches and is not
// measured.
func Run[R any](ctx context.Context, rounds int, all ...*Contender[R]) error {
	for n := range rounds + 1 {
		for i := range all {
			c := all[(n+i)%len(all)] // the first one rotates
			result, err := c.round(ctx, n)
			if err != nil {
				return fmt.Errorf("%s, round %d: %w", c.Name, n, err)
			}
			if n > 0 {
				c.Results = append(c.Results, result)
			}
		}
	}
	return nil
}

func (c *Contender[R]) round(ctx context.Context, n int) (R, error) {
	if c.Prepare != nil {
		if err := c.Prepare(ctx); err != nil {
			var zero R
			return zero, fmt.Errorf("prepare: %w", err)
		}
	}
	return c.Run(ctx, n)
}

// Median returns the median of a time in the results, or 0 without results.
func (c *Contender[R]) Median(timeOf func(R) time.Duration) time.Duration {
	if len(c.Results) == 0 {
		return 0
	}
	var all []time.Duration
	for _, r := range c.Results {
		all = append(all, timeOf(r))
	}
	slices.Sort(all)
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}

// Figure returns the figure of a time in the contender's results, in milliseconds.
func (c *Contender[R]) Figure(name string, timeOf func(R) time.Duration) results.Figure {
	var values []float64
	for _, r := range c.Results {
		values = append(values, results.Millis(timeOf(r)))
	}
	return results.FigureOf(name, "ms", values)
}

// Ratio returns the ratio of two medians of the same run.
func Ratio[R any](a, b *Contender[R], timeOf func(R) time.Duration) float64 {
	return float64(a.Median(timeOf)) / float64(b.Median(timeOf))
}

// Self returns the time itself, for contenders whose result is a time.
func Self(d time.Duration) time.Duration { return d }

// Command runs a command and returns its duration and standard error, which is
// also part of an error.
func Command(cmd *exec.Cmd) (took time.Duration, stderr string, err error) {
	var buf bytes.Buffer
	cmd.Stderr = &buf
	start := time.Now()
	err = cmd.Run()
	took = time.Since(start)
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", cmd, err, buf.String())
	}
	return took, buf.String(), err
}

// FirstOutput runs a command to its end. It returns the times until it has printed its first line
// and until it has ended, and its standard error, which is also part of an error.
func FirstOutput(cmd *exec.Cmd) (first, all time.Duration, stderr string, err error) {
	var buf bytes.Buffer
	cmd.Stderr = &buf
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, 0, "", err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, 0, "", err
	}
	line, readErr := bufio.NewReader(out).ReadString('\n')
	first = time.Since(start)
	_, restErr := io.Copy(io.Discard, out)
	err = cmd.Wait()
	all = time.Since(start)
	if err := errors.Join(err, readErr, restErr); err != nil {
		return 0, 0, "", fmt.Errorf("%s: %w\n%s%s", cmd, err, line, &buf)
	}
	return first, all, buf.String(), nil
}

// Ms formats a time in milliseconds.
func Ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond)) }
