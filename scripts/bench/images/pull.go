package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/scripts/bench/compare"
	"github.com/bot-bottle/bottle/scripts/bench/results"
)

// The size of the image. A layer has 1 to 7 MB, uncompressed.
const (
	layers        = 40
	layerFileSize = 50000 // bytes
	layerFiles    = 20    // in the smallest layer
)

// pull compares with plain and with gzipped layers. Most images have gzipped ones.
func pull(ctx context.Context, program, dir string, rounds int) error {
	for _, gzipped := range []bool{false, true} {
		if err := pullLayers(ctx, program, filepath.Join(dir, fmt.Sprint(gzipped)), gzipped, rounds); err != nil {
			return err
		}
	}
	return nil
}

func pullLayers(ctx context.Context, program, dir string, gzipped bool, rounds int) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	registry, stop, err := labtest.ServeRegistry(dir)
	if err != nil {
		return err
	}
	defer stop()
	ref := registry.Host + "/many/layers:1"
	if err := publish(ctx, program, dir, ref, gzipped); err != nil {
		return err
	}
	// With its content, so that every layer is downloaded and unpacked again.
	remove := func(ctx context.Context) error { return run(ctx, "ctr", "image", "rm", "--sync", ref) }
	by := func(name string, args ...string) *contender {
		return &contender{Name: name, Prepare: remove, Run: func(ctx context.Context, _ int) (time.Duration, error) {
			return timed(ctx, dir, args[0], append(args[1:], ref)...)
		}}
	}
	ours := by("bottle pull", program, "pull")
	theirs := by("ctr image pull", "ctr", "image", "pull", "--plain-http")
	defer func() { err = errors.Join(err, remove(context.WithoutCancel(ctx))) }()
	if err := compare.Run(ctx, rounds, theirs, ours); err != nil {
		return err
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	kind, goal := "plain", goalPull
	if gzipped {
		kind, goal = "gzipped", goalPullGzip
	}
	_, _ = fmt.Fprintf(t, "%d %s layers, median of %d\t\t\n", layers, kind, rounds)
	for _, c := range []*contender{ours, theirs} {
		_, _ = fmt.Fprintf(t, "%s\t%s\t\n", c.Name, median(c))
	}
	_, _ = fmt.Fprintf(t, "bottle / ctr\t%.2f\t  goal: at most %.1f\n", ratio(ours, theirs), goal)
	if err := t.Flush(); err != nil {
		return err
	}
	return results.Record(results.Result{
		Benchmark: "pull-" + kind,
		Figures:   []results.Figure{ours.Figure(ours.Name, compare.Self), theirs.Figure(theirs.Name, compare.Self)},
		Ratios:    []results.Ratio{{Name: kind + " layers / ctr", Value: ratio(ours, theirs), Goal: goal}},
	})
}

// publish builds the image and pushes it to the registry.
func publish(ctx context.Context, program, dir, ref string, gzipped bool) error {
	archive := filepath.Join(dir, "image.tar")
	local := "docker.io/library/bottle-bench:layers"
	args := []string{"run", "./scripts/mkimage", "--out", archive, "--ref", local}
	for i := range layers {
		layer := filepath.Join(dir, fmt.Sprintf("layer%02d", i))
		if err := writeLayer(layer, uint64(i)); err != nil {
			return err
		}
		if !gzipped {
			args = append(args, "--layer-dir", layer)
			continue
		}
		if err := run(ctx, "tar", "--create", "--gzip", "--directory", layer, "--file", layer+".tgz", "."); err != nil {
			return err
		}
		args = append(args, "--layer-tar", layer+".tgz")
	}
	if err := run(ctx, "go", append(args, "--", "true")...); err != nil {
		return err
	}
	for _, c := range [][]string{
		{"ctr", "image", "import", "--no-unpack", archive},
		{"ctr", "image", "tag", local, ref},
		{"ctr", "image", "rm", "--sync", local},
		{program, "push", "--quiet", ref},
	} {
		if err := run(ctx, c[0], c[1:]...); err != nil {
			return err
		}
	}
	return os.Remove(archive)
}

// writeLayer writes files that compress to about half, as programs do.
func writeLayer(dir string, n uint64) error {
	if err := os.MkdirAll(filepath.Join(dir, "opt"), 0o755); err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(n, 3)) //nolint:gosec // not for secrets
	for i := range layerFiles * (1 + n%4*2) {
		data := make([]byte, layerFileSize)
		for j := range layerFileSize / 2 {
			data[j] = byte(random.Uint32())
		}
		if err := os.WriteFile(filepath.Join(dir, "opt", fmt.Sprintf("%02d-%04d", n, i)), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}
