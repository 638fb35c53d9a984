package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/scripts/bench/compare"
)

const benchManifest = `version: 1
bottles:
  bench: {image: "bottle-demo:latest", egress: {allow: [allowed.test]}}
agents:
  bench: {bottle: bench, command: ["true"]}
`

// bottled launches and removes a bottle with bottle's library. Preparing the plan
// is not measured.
type bottled struct {
	engine *bottle.Engine
	spec   plan.Spec
}

func newBottle(ctx context.Context, dir string) (*bottled, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "bottle.yaml"), []byte(benchManifest), 0o600); err != nil {
		return nil, err
	}
	cfg, err := compare.EngineConfig()
	if err != nil {
		return nil, err
	}
	e, err := bottle.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &bottled{engine: e, spec: plan.Spec{
		Agent: "bench", Proxy: manifest.ProxyBuiltin,
		Caller: caller.Caller{
			Getenv:  func(string) (string, bool) { return "", false },
			WorkDir: dir, Home: dir, UID: os.Getuid(), GID: os.Getgid(),
		},
	}}, nil
}

func (b *bottled) close() { _ = b.engine.Close() }

func (b *bottled) round(ctx context.Context, _ int) (r round, err error) {
	plan, err := plan.Prepare(ctx, b.spec, b.engine)
	if err != nil {
		return r, err
	}
	start := time.Now()
	live, err := b.engine.Launch(ctx, plan)
	if err != nil {
		return r, err
	}
	err = compare.FirstExec(ctx, live)
	r.launch = time.Since(start)
	start = time.Now()
	err = errors.Join(err, live.Remove(ctx))
	r.teardown = time.Since(start)
	for _, s := range live.Timings.Steps() {
		r.steps = append(r.steps, step{s.Step, s.Begin, s.Took})
		if s.Step == "start session" {
			r.steps = append(r.steps, step{"first exec", s.Begin, r.launch - s.Begin})
		}
	}
	return r, err
}
