// Command many measures how commands depend on the number of running bottles: it runs
// each with 1 bottle and with 50. It also measures the memory that each bottle adds beside
// its sandbox. It runs inside the test host, after make build:
//
//	scripts/lab exec -- go run ./scripts/bench/many
//
// or, with all other benchmarks, with make bench.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/bot-bottle/bottle/scripts/bench/compare"
	"github.com/bot-bottle/bottle/scripts/bench/results"
)

const benchManifest = `version: 1
bottles:
  bench: {image: "bottle-demo:latest", egress: {allow: [allowed.test]}, limits: {memory: 128MiB}}
agents:
  bench: {bottle: bench, command: [sleep, "100000"]}
`

// first is the bottle that commands name.
const first = "claude-bottle-bench"

// goal is the highest acceptable ratio of list with all bottles to list with one, and
// goalMemory the most memory that a bottle may need beside its sandbox and gofer, in MB.
const (
	goal       = 1.3
	goalMemory = 35
)

func main() {
	rounds := flag.Int("n", 15, "measured rounds")
	bottles := flag.Int("bottles", 50, "bottles to compare with one")
	flag.Parse()
	compare.Main(func(ctx context.Context) error { return bench(ctx, *rounds, *bottles) })
}

// used is what a command has used.
type used struct{ wall, cpu time.Duration }

func bench(ctx context.Context, rounds, n int) (err error) {
	b, err := compare.NewBottle(benchManifest)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	before, err := processes()
	if err != nil {
		return err
	}
	if err := b.Launch(ctx, "bench"); err != nil {
		return err
	}
	one, err := measure(ctx, b, rounds)
	if err != nil {
		return err
	}
	for range n - 1 {
		if err := b.Launch(ctx, "bench"); err != nil {
			return err
		}
	}
	all, err := measure(ctx, b, rounds)
	if err != nil {
		return err
	}
	size, err := memory(before, n)
	if err != nil {
		return err
	}
	return report(one, all, size, n)
}

// commands are measured. A dry run makes the plan of a launch.
var commands = [][]string{
	{"list"},
	{"exec", first, "true"},
	{"egress", first},
	{"run", "bench", "--dry-run", "--proxy", "builtin"},
}

// measure runs each command in turn and returns what it used in each round.
func measure(ctx context.Context, b *compare.Bottle, rounds int) ([][]used, error) {
	all := make([][]used, len(commands))
	for range rounds + 1 { // the first for warming up
		for i, args := range commands {
			u, err := run(ctx, b, args...)
			if err != nil {
				return nil, err
			}
			all[i] = append(all[i], u)
		}
	}
	for i := range all {
		all[i] = all[i][1:]
	}
	return all, nil
}

// figure returns the figure of a time, in milliseconds.
func figure(name string, rounds []used, of func(used) time.Duration) results.Figure {
	var values []float64
	for _, u := range rounds {
		values = append(values, results.Millis(of(u)))
	}
	return results.FigureOf(name, "ms", values)
}

func run(ctx context.Context, b *compare.Bottle, args ...string) (used, error) {
	cmd := b.Command(ctx, args...)
	start := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return used{}, fmt.Errorf("bottle %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return used{time.Since(start), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}, nil
}

func report(one, all [][]used, size float64, n int) error {
	wall := func(u used) time.Duration { return u.wall }
	cpu := func(u used) time.Duration { return u.cpu }
	r := results.Result{Benchmark: "many"}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(t, "bottle\t1 bottle\t%d bottles\tratio\tCPU with 1\twith %d\t\n", n, n)
	for i, args := range commands {
		name := strings.Join(args, " ")
		figures := []results.Figure{
			figure(name+", 1 bottle", one[i], wall), figure(fmt.Sprintf("%s, %d bottles", name, n), all[i], wall),
			figure(name+", 1 bottle, CPU", one[i], cpu), figure(fmt.Sprintf("%s, %d bottles, CPU", name, n), all[i], cpu),
		}
		ratio := results.Ratio{Name: fmt.Sprintf("%s, %d bottles / 1", args[0], n), Value: figures[1].Median / figures[0].Median}
		if args[0] == "list" {
			ratio.Goal = goal
		}
		r.Figures, r.Ratios = append(r.Figures, figures...), append(r.Ratios, ratio)
		_, _ = fmt.Fprintf(t, "%s\t%.1f ms\t%.1f ms\t%.2f\t%.1f ms\t%.1f ms\t\n", name, figures[0].Median, figures[1].Median, ratio.Value, figures[2].Median, figures[3].Median)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Printf("goal: list at most %.1f\n", goal)
	fmt.Printf("memory of a bottle beside its sandbox and gofer: %.1f MB, goal: at most %d\n", size, goalMemory)
	r.Figures = append(r.Figures, results.FigureOf("memory of a bottle beside its sandbox and gofer", "MB", []float64{size}))
	return results.Record(r)
}

// memory returns the memory of the processes that were started since before, but of
// sandboxes and gofers, in MB for each of n bottles. Pages that processes share are counted
// once (Pss, proc_pid_smaps(5)).
func memory(before map[string]bool, n int) (float64, error) {
	now, err := processes()
	if err != nil {
		return 0, err
	}
	kib := 0
	for dir := range now {
		cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		// gVisor's processes for the guest's have no command line.
		if before[dir] || err != nil || len(cmdline) == 0 ||
			bytes.HasPrefix(cmdline, []byte("runsc-sandbox")) || bytes.HasPrefix(cmdline, []byte("runsc-gofer")) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, "smaps_rollup"))
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(data)) {
			var pss int
			if n, _ := fmt.Sscanf(line, "Pss: %d kB", &pss); n == 1 {
				kib += pss
			}
		}
	}
	if kib == 0 {
		return 0, errors.New("no process of a bottle was found")
	}
	return float64(kib) * 1024 / 1e6 / float64(n), nil
}

// processes returns the directories of all processes in /proc.
func processes() (map[string]bool, error) {
	all, err := filepath.Glob("/proc/[0-9]*")
	set := map[string]bool{}
	for _, dir := range all {
		set[dir] = true
	}
	return set, err
}
