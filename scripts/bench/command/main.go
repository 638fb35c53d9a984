// Command command measures the bottle program from its start to its end:
//
//   - `bottle run` up to the first output of the agent, and the time of it that is not the
//     engine's: process start, planning, and process end;
//   - `bottle exec`, compared with `runsc exec` on the same sandbox;
//   - 20 launches at once, compared with the processor time of 20 launches in sequence
//     divided by the number of processors.
//
// It runs inside the test host, after make build:
//
//	scripts/lab exec -- go run ./scripts/bench/command
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
	"regexp"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/scripts/bench/compare"
	"github.com/bot-bottle/bottle/scripts/bench/results"
)

const benchManifest = `version: 1
bottles:
  bench: {image: "bottle-demo:latest", egress: {allow: [allowed.test]}, limits: {memory: 128MiB}}
agents:
  speak: {bottle: bench, command: [echo, hello]}
  stay: {bottle: bench, command: [sleep, "100000"]}
`

// stays is the bottle that exec is measured in.
const stays = "claude-bottle-stay"

// Goals.
const (
	goalOutside = 25  // ms of `bottle run` that are not the engine's
	goalExec    = 0.7 // `bottle exec` / `runsc exec`
	goalAtOnce  = 1.2 // 20 launches at once / their processor time on all processors
)

func main() {
	rounds := flag.Int("n", 15, "measured rounds, after one for warming up")
	many := flag.Int("launches", 20, "launches at once")
	flag.Parse()
	compare.Main(func(ctx context.Context) error { return bench(ctx, *rounds, *many) })
}

func bench(ctx context.Context, rounds, many int) (err error) {
	b, err := compare.NewBottle(benchManifest)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	r := results.Result{Benchmark: "command"}
	if err := measureRun(ctx, b, rounds, &r); err != nil {
		return err
	}
	if err := measureExec(ctx, b, rounds, &r); err != nil {
		return err
	}
	if err := measureAtOnce(ctx, b, many, &r); err != nil {
		return err
	}
	for _, f := range r.Figures {
		fmt.Printf("%s: %.1f %s (%.1f to %.1f)\n", f.Name, f.Median, f.Unit, f.Low, f.High)
	}
	for _, ratio := range r.Ratios {
		fmt.Printf("%s: %.2f, goal: at most %.1f\n", ratio.Name, ratio.Value, ratio.Goal)
	}
	fmt.Printf("goal: bottle run outside the engine at most %d ms\n", goalOutside)
	return results.Record(r)
}

// run is a run of `bottle run` with one line of output.
type run struct{ first, outside time.Duration }

func measureRun(ctx context.Context, b *compare.Bottle, rounds int, r *results.Result) error {
	c := &compare.Contender[run]{Name: "bottle run", Run: func(ctx context.Context, _ int) (run, error) { return runOnce(ctx, b) }}
	if err := compare.Run(ctx, rounds, c); err != nil {
		return err
	}
	r.Figures = append(r.Figures,
		c.Figure("bottle run to the first output", func(x run) time.Duration { return x.first }),
		c.Figure("bottle run outside the engine", func(x run) time.Duration { return x.outside }))
	return nil
}

// timing is a line of the output of --timings: start, duration and step.
var timing = regexp.MustCompile(`(?m)^ *([0-9.]+) +([0-9.]+) (.*)$`)

func runOnce(ctx context.Context, b *compare.Bottle) (run, error) {
	first, all, stderr, err := compare.FirstOutput(b.Command(ctx, compare.RunArgs("speak", "--timings")...))
	if err != nil {
		return run{}, err
	}
	// The engine's last step ends with the removal of the bottle.
	for _, m := range timing.FindAllStringSubmatch(stderr, -1) {
		if m[3] == "remove" {
			begin, berr := strconv.ParseFloat(m[1], 64)
			took, terr := strconv.ParseFloat(m[2], 64)
			engine := time.Duration((begin + took) * float64(time.Millisecond))
			return run{first: first, outside: all - engine}, errors.Join(berr, terr)
		}
	}
	return run{}, fmt.Errorf("no duration of the removal in\n%s", stderr)
}

func measureExec(ctx context.Context, b *compare.Bottle, rounds int, r *results.Result) error {
	if err := b.Launch(ctx, "stay"); err != nil {
		return err
	}
	timed := func(name string, args ...string) *compare.Contender[time.Duration] {
		return &compare.Contender[time.Duration]{Name: name, Run: func(ctx context.Context, _ int) (time.Duration, error) {
			cmd := exec.CommandContext(ctx, args[0], args[1:]...)
			cmd.Dir = b.Dir
			took, _, err := compare.Command(cmd)
			return took, err
		}}
	}
	cfg := bottle.ConfigFromEnv(os.Getenv)
	root := filepath.Join(cfg.RunDir, cfg.Namespace, stays, "runsc", cfg.Namespace)
	ours := timed("bottle exec", b.Program, "exec", "-T", stays, "true")
	theirs := timed("runsc exec", "runsc", "--root", root, "exec", stays, "true")
	if err := compare.Run(ctx, rounds, ours, theirs); err != nil {
		return err
	}
	r.Figures = append(r.Figures, ours.Figure(ours.Name, compare.Self), theirs.Figure(theirs.Name, compare.Self))
	r.Ratios = append(r.Ratios, results.Ratio{Name: "exec / runsc exec", Value: compare.Ratio(ours, theirs, compare.Self), Goal: goalExec})
	return nil
}

// measureAtOnce compares launches at once with their processor time in sequence. The
// processor time is the machine's, because containerd, shims and the kernel work for a
// launch, too: nothing else should run meanwhile.
func measureAtOnce(ctx context.Context, b *compare.Bottle, many int, r *results.Result) error {
	if err := b.Launch(ctx, "stay"); err != nil { // warms up
		return err
	}
	busy, err := busyTime()
	if err != nil {
		return err
	}
	const single = 5
	for range single {
		if err := b.Launch(ctx, "stay"); err != nil {
			return err
		}
	}
	after, err := busyTime()
	if err != nil {
		return err
	}
	one := (after - busy) / single
	errs := make([]error, many)
	start := time.Now()
	var wg sync.WaitGroup
	for i := range many {
		wg.Go(func() { errs[i] = b.Launch(ctx, "stay") })
	}
	wg.Wait()
	took := time.Since(start)
	if err := errors.Join(errs...); err != nil {
		return err
	}
	r.Figures = append(r.Figures,
		results.FigureOf("processor time of a launch", "ms", []float64{results.Millis(one)}),
		results.FigureOf(fmt.Sprintf("%d launches at once", many), "ms", []float64{results.Millis(took)}))
	ideal := time.Duration(many) * one / time.Duration(runtime.NumCPU())
	r.Ratios = append(r.Ratios, results.Ratio{
		Name: fmt.Sprintf("%d launches at once / their processor time", many), Value: float64(took) / float64(ideal), Goal: goalAtOnce,
	})
	return nil
}

// busyTime returns for how long the machine's processors have worked since its boot
// (proc_stat(5)), in units of 10 ms.
func busyTime() (time.Duration, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	var user, nice, system, idle, iowait, irq, softirq int64
	if _, err := fmt.Sscanf(string(data), "cpu %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &iowait, &irq, &softirq); err != nil {
		return 0, fmt.Errorf("/proc/stat: %w", err)
	}
	return time.Duration(user+nice+system+irq+softirq) * 10 * time.Millisecond, nil
}
