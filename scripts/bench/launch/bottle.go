package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/scripts/bench/compare"
	"github.com/bot-bottle/bottle/session"
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
	cfg := bottle.ConfigFromEnv(os.Getenv)
	var err error
	if cfg.Program, err = compare.Program(); err != nil {
		return nil, err
	}
	if cfg.Guest, err = embedded("guest"); err != nil {
		return nil, err
	}
	if cfg.ProxyProgram, err = embedded("proxy"); err != nil {
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
	err = firstExec(ctx, live)
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

// firstExec runs the first exec to its end.
func firstExec(ctx context.Context, b *bottle.Bottle) error {
	s, err := b.Exec(ctx, session.Config{Stdout: io.Discard, Stderr: io.Discard})
	if err != nil {
		return err
	}
	code, err := s.Wait()
	if err == nil && code != 0 {
		err = fmt.Errorf("first exec: exit code %d", code)
	}
	return err
}

// embedded opens a program that the bottle binary contains.
func embedded(name string) (func() (io.ReadCloser, error), error) {
	file := filepath.Join("cmd", "bottle", "embedded", name+"-"+runtime.GOARCH)
	if _, err := os.Stat(file); err != nil {
		return nil, fmt.Errorf("find the %s program: %w (make build)", name, err)
	}
	return func() (io.ReadCloser, error) { return os.Open(file) }, nil
}
