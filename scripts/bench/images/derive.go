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

	containerd "github.com/containerd/containerd/v2/client"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/scripts/bench/compare"
	"github.com/bot-bottle/bottle/scripts/bench/results"
)

// The size of the working directory.
const (
	files    = 20000
	fileSize = 10000 // bytes
	perDir   = 100
)

// derived is the name of an image with the working directory.
const derived = "docker.io/library/bottle-bench:cwd-%d"

// deriveOnce builds an image as a run with --cwd does. It is a separate process.
func deriveOnce(ctx context.Context, ref, dir string) error {
	c, err := containerd.New(os.Getenv("CONTAINERD_ADDRESS"))
	if err != nil {
		return err
	}
	_, err = images.New(c, os.Getenv("CONTAINERD_NAMESPACE"), "").Derive(ctx, images.Derivation{
		Ref: ref, Base: "docker.io/library/bottle-demo:latest", Dir: dir, Target: "/workspace",
		Owner: func(context.Context) (int, int, error) { return 1000, 1000, nil },
	})
	return errors.Join(err, c.Close())
}

func derive(ctx context.Context, program, dir string, rounds int) (err error) {
	workDir := filepath.Join(dir, "work")
	if err := writeWorkDir(workDir); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	changes := 0
	image := func(ctx context.Context, _ int) (time.Duration, error) {
		return timed(ctx, workDir, self, "--derive", fmt.Sprintf(derived, changes), workDir)
	}
	// Every change makes a new image with its own name. Removing the previous image
	// would distort the results, because ext4 is slow to reuse inodes that were freed
	// in the last minutes.
	change := func(context.Context) error {
		changes++
		err := os.WriteFile(filepath.Join(workDir, "package000", "changes"), fmt.Append(nil, changes), 0o600)
		// The fingerprint of a directory is not trusted right after a change.
		time.Sleep(200 * time.Millisecond)
		return err
	}
	defer func() {
		for i := range changes {
			err = errors.Join(err, run(context.WithoutCancel(ctx), program, "rmi", fmt.Sprintf(derived, i+1)))
		}
	}()
	archive := filepath.Join(dir, "tar.zst")
	plain := &contender{
		Name: "tar | zstd", Prepare: func(context.Context) error { return os.RemoveAll(archive) },
		Run: func(ctx context.Context, _ int) (time.Duration, error) {
			return timed(ctx, workDir, "sh", "-c", `tar -cf - . | zstd -q -o "$0"`, archive)
		},
	}
	cold := &contender{Name: "image of the changed directory", Prepare: change, Run: image}
	unchanged := &contender{Name: "image of the unchanged directory", Run: image}
	if err := change(ctx); err != nil {
		return err
	}
	if _, err := image(ctx, 0); err != nil {
		return err
	}
	if err := compare.Run(ctx, rounds, plain, cold, unchanged); err != nil {
		return err
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(t, "%d files, %d MB, median of %d\t\t\n", files, files*fileSize/1_000_000, rounds)
	for _, c := range []*contender{plain, cold, unchanged} {
		_, _ = fmt.Fprintf(t, "%s\t%s\t\n", c.Name, median(c))
	}
	_, _ = fmt.Fprintf(t, "changed / tar | zstd\t%.2f\t  goal: at most %.1f\n", ratio(cold, plain), goalCold)
	_, _ = fmt.Fprintf(t, "unchanged / tar | zstd\t%.2f\t  goal: under %v\n", ratio(unchanged, plain), goalUnchanged)
	if err := t.Flush(); err != nil {
		return err
	}
	return results.Record(results.Result{
		Benchmark: "derive",
		Figures:   []results.Figure{plain.Figure(plain.Name, compare.Self), cold.Figure(cold.Name, compare.Self), unchanged.Figure(unchanged.Name, compare.Self)},
		Ratios: []results.Ratio{
			{Name: "changed directory / tar | zstd", Value: ratio(cold, plain), Goal: goalCold},
			{Name: "unchanged directory / tar | zstd", Value: ratio(unchanged, plain)},
		},
	})
}

// writeWorkDir writes files of words, which compress about as well as source code.
// The content is the same each time.
func writeWorkDir(workDir string) error {
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // not for secrets
	words := make([]string, 4000)
	for i := range words {
		b := make([]byte, 2+random.IntN(10))
		for j := range b {
			b[j] = byte('a' + random.IntN(26))
		}
		words[i] = string(b)
	}
	for i := range files {
		dir := filepath.Join(workDir, fmt.Sprintf("package%03d", i/perDir))
		if i%perDir == 0 {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		text := make([]byte, 0, fileSize+16)
		for len(text) < fileSize {
			text = append(text, words[random.IntN(len(words))]...)
			text = append(text, " \n\t(.,"[random.IntN(6)])
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file%05d", i)), text[:fileSize], 0o644); err != nil {
			return err
		}
	}
	return nil
}
