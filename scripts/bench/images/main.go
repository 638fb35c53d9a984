// Command images measures, as whole commands that take turns:
//
//   - what a run does for the image of a working directory (200 MB in 20,000
//     files), when it has to be made and when nothing has changed, beside
//     `tar | zstd` of the same folder;
//   - the pull of an image of many layers from a registry on loopback, beside
//     `ctr image pull`.
//
// It runs inside the test host:
//
//	scripts/lab exec -- go run ./scripts/bench/images
//
// or, with all other benchmarks, make bench.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/bot-bottle/bottle/scripts/bench/turns"
)

// Goals of the ratios, and of the time of a run whose folder has not changed.
const (
	goalCold      = 1.5
	goalUnchanged = 300 * time.Millisecond
	goalPull      = 1.0
)

func main() {
	rounds := flag.Int("n", 7, "rounds that are measured; one more goes before")
	part := flag.String("only", "", "derive or pull: that part alone")
	ref := flag.String("derive", "", "make the image of this name of the folder that is the argument, and stop; for itself")
	flag.Parse()
	turns.Main(func(ctx context.Context) error {
		if *ref != "" {
			return deriveOnce(ctx, *ref, flag.Arg(0))
		}
		return bench(ctx, *rounds, *part)
	})
}

func bench(ctx context.Context, rounds int, part string) (err error) {
	if err := turns.OnTestHost(); err != nil {
		return err
	}
	program, err := turns.Program()
	if err != nil {
		return err
	}
	// On the disk that containerd's store is on, as all that is compared is written.
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

// contender is one way to do what is measured, which takes as long as it says.
type contender = turns.Contender[time.Duration]

func median(c *contender) string {
	return fmt.Sprintf("%.0f ms", float64(c.Median(turns.Whole))/float64(time.Millisecond))
}

func ratio(a, b *contender) float64 { return turns.Ratio(a, b, turns.Whole) }

// timed runs a command and returns how long it took; its standard error is in the
// error.
func timed(ctx context.Context, dir, name string, args ...string) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var out bytes.Buffer
	cmd.Stderr = &out
	begin := time.Now()
	err := cmd.Run()
	took := time.Since(begin)
	if err != nil {
		return 0, fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, out.String())
	}
	return took, nil
}

// run is timed for what is not measured.
func run(ctx context.Context, name string, args ...string) error {
	_, err := timed(ctx, "", name, args...)
	return err
}
