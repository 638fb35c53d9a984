// Command build measures a build whose steps are all cached, with `bottle build`,
// which runs BuildKit in its own process, and with `buildctl build` and a running
// buildkitd. Both build the same context on the same base. It runs inside the test
// host:
//
//	scripts/lab up --with-buildkitd
//	scripts/lab exec -- go run ./scripts/bench/build
//
// or, with all other benchmarks, with make bench.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/bot-bottle/bottle/scripts/bench/compare"
	"github.com/bot-bottle/bottle/scripts/bench/results"
)

// goal is the highest acceptable ratio of bottle's time to buildctl's.
const goal = 0.9

const dockerfile = `FROM bottle-demo:latest AS first
USER root
WORKDIR /work
COPY files /files
RUN mkdir a && echo 1 >a/1
RUN echo 2 >a/2
RUN echo 3 >a/3
ENV COLOR=green
RUN echo $COLOR >a/4
COPY files/1 a/5

FROM bottle-demo:latest
USER root
RUN echo 6 >/tmp/6
COPY --from=first /work /work
RUN --mount=type=cache,target=/cache echo 7 >/cache/7 && cp /cache/7 /tmp
COPY --chmod=0755 <<END /script
#!/bin/sh
END
RUN chown -R 1000:1000 /work
LABEL made=here
USER 1000:1000
CMD ["/script"]
`

// cached is the number of steps that must come from the cache: those that run or
// copy.
const cached = 10

func main() {
	rounds := flag.Int("n", 40, "measured rounds, after one for warming up")
	flag.Parse()
	compare.Main(func(ctx context.Context) error { return bench(ctx, *rounds) })
}

// builder is one of the ways to build. Its command prints its progress to standard
// error.
type builder struct {
	name    string
	command func(context.Context) *exec.Cmd
	digest  func(stdout []byte) (string, error)
	first   string // digest of the first build
}

func bench(ctx context.Context, rounds int) (err error) {
	if err := compare.CheckTestHost(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bottle-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := writeContext(filepath.Join(dir, "context")); err != nil {
		return err
	}
	d, err := startDaemon(ctx, dir)
	if err != nil {
		return fmt.Errorf("buildkitd: %w", err)
	}
	defer func() { err = errors.Join(err, d.close()) }()
	b, err := newBottle(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	var all []*compare.Contender[time.Duration]
	for _, by := range []*builder{
		{name: "bottle build", command: b.build, digest: b.digest},
		{name: "buildctl build", command: d.build, digest: d.digest},
	} {
		if _, err := by.build(ctx, 0); err != nil { // fills the cache
			return fmt.Errorf("%s: %w", by.name, err)
		}
		all = append(all, &compare.Contender[time.Duration]{Name: by.name, Run: func(ctx context.Context, _ int) (time.Duration, error) {
			return by.build(ctx, cached)
		}})
	}
	if err := compare.Run(ctx, rounds, all...); err != nil {
		return err
	}
	ours, theirs := all[0], all[1]
	fmt.Printf("cached build, median of %d: bottle build %s, buildctl build with a running buildkitd %s, ratio %.2f\n",
		rounds, compare.Ms(ours.Median(compare.Self)), compare.Ms(theirs.Median(compare.Self)), compare.Ratio(ours, theirs, compare.Self))
	fmt.Printf("goal: at most %.1f\n", goal)
	return results.Record(results.Result{
		Benchmark: "build",
		Figures:   []results.Figure{ours.Figure(ours.Name, compare.Self), theirs.Figure(theirs.Name, compare.Self)},
		Ratios:    []results.Ratio{{Name: "cached build / buildctl", Value: compare.Ratio(ours, theirs, compare.Self), Goal: goal}},
	})
}

// build builds once. It fails if fewer steps than cached come from the cache or if
// the digest is not that of the first build.
func (by *builder) build(ctx context.Context, cached int) (time.Duration, error) {
	cmd := by.command(ctx)
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	took, progress, err := compare.Command(cmd)
	if err != nil {
		return 0, err
	}
	if n := strings.Count(progress, "CACHED"); n < cached {
		return 0, fmt.Errorf("only %d steps were cached:\n%s", n, progress)
	}
	digest, err := by.digest(stdout.Bytes())
	if err != nil {
		return 0, fmt.Errorf("read the digest: %w", err)
	}
	if by.first == "" {
		by.first = digest
	}
	if digest != by.first {
		return 0, fmt.Errorf("digest %s differs from the first build's %s", digest, by.first)
	}
	return took, nil
}

func writeContext(dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, "files"), 0o755); err != nil {
		return err
	}
	for i := range 200 {
		if err := os.WriteFile(filepath.Join(dir, "files", fmt.Sprint(i)), bytes.Repeat([]byte{byte(i)}, 4096), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644)
}

// bottled is the bottle program with a state directory for this benchmark.
type bottled struct{ dir, program string }

const bottleImage = "bench-build:latest"

func newBottle(dir string) (*bottled, error) {
	program, err := compare.Program()
	if err != nil {
		return nil, err
	}
	return &bottled{dir, program}, nil
}

func (b *bottled) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, b.program, args...)
	cmd.Env = append(os.Environ(), "BOTTLE_STATE_DIR="+filepath.Join(b.dir, "state"), "BUILDKIT_HOST=")
	return cmd
}

func (b *bottled) build(ctx context.Context) *exec.Cmd {
	return b.command(ctx, "build", "--progress", "plain", "-t", bottleImage, filepath.Join(b.dir, "context"))
}

func (b *bottled) digest(stdout []byte) (string, error) {
	return strings.TrimSpace(string(stdout)), nil
}

func (b *bottled) close() error {
	ctx := context.Background()
	var errs []error
	for _, args := range [][]string{{"rmi", bottleImage}, {"build", "--prune"}} {
		if out, err := b.command(ctx, args...).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("bottle %s: %w\n%s", args[0], err, out))
		}
	}
	return errors.Join(errs...)
}

// metadata reads the digest from buildctl's metadata file.
func metadata(file string) (digest string, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	var m struct {
		Digest string `json:"containerimage.digest"`
	}
	err = json.Unmarshal(data, &m)
	return m.Digest, err
}
