// Command build measures a build of which every step is in the cache, by `bottle
// build`, which starts BuildKit in its own process, and by `buildctl build` with a
// buildkitd that is running. The two build the same context on the same base and
// take turns. It runs inside the test host:
//
//	scripts/lab up --with-buildkitd
//	scripts/lab exec -- go run ./scripts/bench/build
//
// or, with all other benchmarks, make bench.
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

	"github.com/bot-bottle/bottle/scripts/bench/turns"
)

// goal is how many times buildctl's time bottle may take.
const goal = 1.1

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

// cached is how many of its steps run or copy, which the cache has to hold.
const cached = 10

func main() {
	rounds := flag.Int("n", 40, "rounds that are measured; one more goes before")
	flag.Parse()
	turns.Main(func(ctx context.Context) error { return bench(ctx, *rounds) })
}

// builder is one way to build. Its command prints what its build did on standard
// error.
type builder struct {
	name    string
	command func(context.Context) *exec.Cmd
	digest  func(stdout []byte) (string, error)
	made    string // the digest of the first build
}

func bench(ctx context.Context, rounds int) (err error) {
	if err := turns.OnTestHost(); err != nil {
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
	var all []*turns.Contender[time.Duration]
	for _, by := range []*builder{
		{name: "bottle build", command: b.build, digest: b.digest},
		{name: "buildctl build", command: d.build, digest: d.digest},
	} {
		if _, err := by.build(ctx, 0); err != nil { // this one fills the cache
			return fmt.Errorf("%s: %w", by.name, err)
		}
		all = append(all, &turns.Contender[time.Duration]{Name: by.name, Run: func(ctx context.Context, _ int) (time.Duration, error) {
			return by.build(ctx, cached)
		}})
	}
	if err := turns.Compete(ctx, rounds, all...); err != nil {
		return err
	}
	ours, theirs := all[0], all[1]
	fmt.Printf("a build of nothing new, median of %d: bottle build %s, buildctl build with a standing buildkitd %s, ratio %.2f\n",
		rounds, turns.Ms(ours.Median(turns.Whole)), turns.Ms(theirs.Median(turns.Whole)), turns.Ratio(ours, theirs, turns.Whole))
	fmt.Printf("goal: at most %.1f\n", goal)
	return nil
}

// build builds once. At least so many steps have to come from the cache, and the
// image has to be the one that the first build made.
func (by *builder) build(ctx context.Context, cached int) (time.Duration, error) {
	cmd := by.command(ctx)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	err := cmd.Run()
	took := time.Since(began)
	if err != nil {
		return 0, fmt.Errorf("%w\n%s", err, stderr.String())
	}
	if n := strings.Count(stderr.String(), "CACHED"); n < cached {
		return 0, fmt.Errorf("only %d steps were cached:\n%s", n, stderr.String())
	}
	made, err := by.digest(stdout.Bytes())
	if err != nil || by.made != "" && made != by.made {
		return 0, fmt.Errorf("it made %q, before that %q: %w", made, by.made, err)
	}
	by.made = made
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

// bottled is bottle's own program with a state folder for this benchmark.
type bottled struct{ dir, program string }

const bottleImage = "bench-build:latest"

func newBottle(dir string) (*bottled, error) {
	program, err := turns.Program()
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

// metadata is what buildctl writes of a build.
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
