// Command prepared compares runs that claim a prepared bottle with runs that launch one:
// `bottle run` from its start to the first output of its agent, and the engine's part of
// it, up to the end of a first exec. It runs inside the test host:
//
//	scripts/lab exec -- go run ./scripts/bench/prepared
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
	"text/tabwriter"
	"time"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/scripts/bench/compare"
	"github.com/bot-bottle/bottle/scripts/bench/results"
)

const benchManifest = `version: 1
bottles:
  bench: {image: "bottle-demo:latest", proxy: {kind: builtin}, egress: {allow: [allowed.test]}}
agents:
  cold: {bottle: bench, command: [echo, first]}
  ready: {bottle: bench, command: [echo, first], pool: 1}
`

// goal is the highest acceptable ratio of a prepared bottle's time to a new one's.
const goal = 0.12

type contender = compare.Contender[time.Duration]

func main() {
	rounds := flag.Int("n", 15, "measured rounds, after one for warming up")
	flag.Parse()
	compare.Main(func(ctx context.Context) error { return bench(ctx, *rounds) })
}

func bench(ctx context.Context, rounds int) (err error) {
	if err := compare.CheckTestHost(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("/run", "bottle-bench-")
	if err != nil {
		return err
	}
	s := &scene{dir: dir}
	defer func() { err = errors.Join(err, s.close(), os.RemoveAll(dir)) }()
	if err := s.open(ctx); err != nil {
		return err
	}
	engine := []*contender{{Name: "cold", Prepare: s.fill, Run: s.launch("cold")}, {Name: "prepared", Prepare: s.fill, Run: s.launch("ready")}}
	command := []*contender{{Name: "cold", Prepare: s.fill, Run: s.command("cold")}, {Name: "prepared", Prepare: s.fill, Run: s.command("ready")}}
	if err := compare.Run(ctx, rounds, append(append([]*contender{}, engine...), command...)...); err != nil {
		return err
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(t, "median of %d\tcold\tprepared\tprepared / cold\t\n", rounds)
	for _, row := range []struct {
		name string
		of   []*contender
	}{{"engine, to the end of the first exec", engine}, {"bottle run, to the first output", command}} {
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%.2f\t\n", row.name, compare.Ms(row.of[0].Median(compare.Self)), compare.Ms(row.of[1].Median(compare.Self)),
			compare.Ratio(row.of[1], row.of[0], compare.Self))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Printf("goal: prepared / cold at most %.2f\n", goal)
	r := results.Result{Benchmark: "prepared", Ratios: []results.Ratio{
		{Name: "engine, prepared / cold", Value: compare.Ratio(engine[1], engine[0], compare.Self), Goal: goal},
		{Name: "bottle run, prepared / cold", Value: compare.Ratio(command[1], command[0], compare.Self), Goal: goal},
	}}
	for _, c := range engine {
		r.Figures = append(r.Figures, c.Figure("engine, "+c.Name, compare.Self))
	}
	for _, c := range command {
		r.Figures = append(r.Figures, c.Figure("bottle run, "+c.Name, compare.Self))
	}
	return results.Record(r)
}

// scene has an agent with a pool and one without.
type scene struct {
	dir, program string
	engine       *bottle.Engine
}

func (s *scene) open(ctx context.Context) (err error) {
	if err := os.WriteFile(filepath.Join(s.dir, "bottle.yaml"), []byte(benchManifest), 0o600); err != nil {
		return err
	}
	cfg, err := compare.EngineConfig() // as the program's: both then prepare the same bottles
	if err != nil {
		return err
	}
	s.program = cfg.Program
	s.engine, err = bottle.Open(ctx, cfg)
	return err
}

func (s *scene) close() error {
	if s.engine == nil {
		return nil
	}
	all := func(bottle.PreparedBottle) bool { return true }
	return errors.Join(s.engine.DrainPool(context.Background(), all), s.engine.Close())
}

func (s *scene) plan(ctx context.Context, agent string, ahead bool) (*plan.Plan, error) {
	return plan.Prepare(ctx, plan.Spec{
		Agent: agent, NamesOnly: ahead, ManifestPath: filepath.Join(s.dir, "bottle.yaml"),
		Caller: caller.Caller{Getenv: func(string) (string, bool) { return "", false }, WorkDir: s.dir, Home: s.dir, UID: os.Getuid(), GID: os.Getgid()},
	}, s.engine)
}

// fill fills the pool, and waits for a process that is doing so.
func (s *scene) fill(ctx context.Context) error {
	p, err := s.plan(ctx, "ready", true)
	if err != nil {
		return err
	}
	return s.engine.FillPool(ctx, p, p.Pool)
}

// launch measures the engine. The plan is not measured.
func (s *scene) launch(agent string) func(context.Context, int) (time.Duration, error) {
	return func(ctx context.Context, _ int) (took time.Duration, err error) {
		p, err := s.plan(ctx, agent, false)
		if err != nil {
			return 0, err
		}
		if p.Pool > 0 && p.Prepared.Name == "" {
			return 0, fmt.Errorf("no prepared bottle: %s", p.Prepared.Reason)
		}
		start := time.Now()
		b, err := s.engine.Launch(ctx, p)
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, b.Remove(context.WithoutCancel(ctx))) }()
		err = compare.FirstExec(ctx, b)
		return time.Since(start), err
	}
}

// command measures the bottle program.
func (s *scene) command(agent string) func(context.Context, int) (time.Duration, error) {
	return func(ctx context.Context, _ int) (time.Duration, error) {
		cmd := exec.CommandContext(ctx, s.program, "run", agent, "--yes", "--trust", "--quiet")
		cmd.Dir, cmd.Env = s.dir, append(os.Environ(), "HOME="+s.dir)
		first, _, _, err := compare.FirstOutput(cmd)
		return first, err
	}
}
