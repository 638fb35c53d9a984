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
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
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
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := bench(ctx, *rounds)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// contender is one way to build. Its command prints what its build did on standard
// error.
type contender struct {
	name    string
	command func(context.Context) *exec.Cmd
	digest  func(stdout []byte) (string, error)
	made    string // the digest of the first build
	took    []time.Duration
}

func bench(ctx context.Context, rounds int) (err error) {
	if os.Getenv("LAB_ID") == "" {
		return errors.New("this runs on the test host: make bench, or scripts/lab exec -- go run ./scripts/bench/build")
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
	all := []*contender{
		{name: "bottle build", command: b.build, digest: b.digest},
		{name: "buildctl build", command: d.build, digest: d.digest},
	}
	for _, c := range all { // this one fills the cache
		if err := c.round(ctx, 0); err != nil {
			return err
		}
	}
	for n := range rounds + 1 {
		for i := range all {
			c := all[(n+i)%len(all)] // each goes first as often
			if err := c.round(ctx, cached); err != nil {
				return err
			}
			if n == 0 { // it warms what is not the builds'
				c.took = nil
			}
		}
	}
	ours, theirs := median(all[0].took), median(all[1].took)
	fmt.Printf("a build of nothing new, median of %d: bottle build %s, buildctl build with a standing buildkitd %s, ratio %.2f\n",
		rounds, ms(ours), ms(theirs), float64(ours)/float64(theirs))
	fmt.Printf("goal: at most %.1f\n", goal)
	return nil
}

// round builds once. At least so many steps have to come from the cache, and the
// image has to be the one that the first build made.
func (c *contender) round(ctx context.Context, cached int) error {
	cmd := c.command(ctx)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	err := cmd.Run()
	c.took = append(c.took, time.Since(began))
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", c.name, err, stderr.String())
	}
	if n := strings.Count(stderr.String(), "CACHED"); n < cached {
		return fmt.Errorf("%s: only %d steps were cached:\n%s", c.name, n, stderr.String())
	}
	made, err := c.digest(stdout.Bytes())
	if err != nil || c.made != "" && made != c.made {
		return fmt.Errorf("%s made %q, before that %q: %w", c.name, made, c.made, err)
	}
	c.made = made
	return nil
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
	program, err := filepath.Abs("bin/bottle")
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(program); err != nil {
		return nil, fmt.Errorf("bottle's program: %w (make build)", err)
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

func median(all []time.Duration) time.Duration {
	all = slices.Sorted(slices.Values(all))
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond)) }

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
