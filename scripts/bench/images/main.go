// Command images measures:
//
//   - building the image of a working directory for a run (200 MB in 20,000
//     files), when it has changed and when it has not, compared with `tar | zstd`
//     of the same directory;
//   - pulling an image with many layers from a registry on loopback, compared with
//     `ctr image pull`.
//
// It runs inside the test host:
//
//	scripts/lab exec -- go run ./scripts/bench/images
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
	"time"

	"github.com/bot-bottle/bottle/scripts/bench/compare"
)

// Goals for the ratios, and for the time if the directory has not changed.
const (
	goalCold      = 1.2
	goalUnchanged = 300 * time.Millisecond
	goalPull      = 0.9
	goalPullGzip  = 1.0
)

func main() {
	rounds := flag.Int("n", 7, "measured rounds, after one for warming up")
	part := flag.String("only", "", "run only one part: derive or pull")
	ref := flag.String("derive", "", "internal: build an image with this name from the directory in the argument")
	flag.Parse()
	compare.Main(func(ctx context.Context) error {
		if *ref != "" {
			return deriveOnce(ctx, *ref, flag.Arg(0))
		}
		return bench(ctx, *rounds, *part)
	})
}

func bench(ctx context.Context, rounds int, part string) (err error) {
	if err := compare.CheckTestHost(); err != nil {
		return err
	}
	program, err := compare.Program()
	if err != nil {
		return err
	}
	// On the same disk as containerd's store, because all contenders write.
	dir, err := os.MkdirTemp("/var/lib/bottle", "bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if part != "pull" {
		if err := derive(ctx, program, filepath.Join(dir, "derive"), rounds); err != nil {
			return fmt.Errorf("derive: %w", err)
		}
	}
	if part != "derive" {
		if err := pull(ctx, program, filepath.Join(dir, "pull"), rounds); err != nil {
			return fmt.Errorf("pull: %w", err)
		}
	}
	return nil
}

type contender = compare.Contender[time.Duration]

func median(c *contender) string { return compare.Ms(c.Median(compare.Self)) }

func ratio(a, b *contender) float64 { return compare.Ratio(a, b, compare.Self) }

// timed runs a command and returns its duration.
func timed(ctx context.Context, dir, name string, args ...string) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	took, _, err := compare.Command(cmd)
	return took, err
}

// run runs a command that is not measured.
func run(ctx context.Context, name string, args ...string) error {
	_, err := timed(ctx, "", name, args...)
	return err
}
