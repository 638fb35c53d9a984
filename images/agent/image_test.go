//go:build agentimage

// This test downloads half a gigabyte of packages and takes minutes: it is run only
// by `make agent-image`, which provides mirrors.

package agent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bot-bottle/bottle/images/agent"
	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

func TestMain(m *testing.M) { os.Exit(labtest.Main(m)) }

// The lab's default namespace has a different image with the default name.
const (
	namespace = "agent-image"
	image     = "docker.io/library/claude-bottle:latest"
	base      = "docker.io/library/bottle-base:latest"
)

const manifest = `version: 1
bottles:
  dev:
    build:
      args: {BASE: "bottle-base:latest"}
      secrets: {sources: %[1]s/sources.list, npmrc: %[1]s/npmrc}
agents:
  claude: {bottle: dev}
  sh: {bottle: dev, command: [bash, -euc]}
`

// Each line of the script's output must contain the corresponding string of output.
const script = `id -u; id -un; pwd; echo $HOME; claude --version; git --version; ssh -V 2>&1; rg --version | head -n 1
touch /workspace/x ~/y && echo both are writable
command -v node npm bottle-install || echo no build tools
dmesg | grep -o -m 1 gVisor`

var output = []string{"1000", "agent", "/workspace", "/home/agent", "(Claude Code)", "git version", "OpenSSH", "ripgrep", "both are writable", "no build tools", "gVisor"}

type scene struct {
	t    *testing.T
	ctx  context.Context
	dir  string
	ctrd *containerd.Client
}

// TestAgentImage makes `bottle run` build the missing image from its Dockerfile, a
// Debian base and mirrors, and checks the result.
func TestAgentImage(t *testing.T) {
	leakcheck.Check(t)
	s := newScene(t)
	s.want(s.run("sh", script), output)
	built := s.target(image)

	s.want(s.run("claude", "--version"), []string{"(Claude Code)"})
	if again := s.target(image); again.Digest != built.Digest {
		t.Errorf("the image was built again: %s, before that %s", again.Digest, built.Digest)
	}

	// An image built by an earlier version of bottle.
	s.build("FROM "+image+"\nLABEL "+agent.Label+"=earlier\nRUN --network=none touch /home/agent/earlier\n", "claude-bottle:latest")
	s.want(s.run("sh", "ls ~"), []string{""})
	if again := s.target(image); again.Digest != built.Digest {
		t.Errorf("an outdated image became %s, want %s", again.Digest, built.Digest)
	}

	s.goModules()
	addresses := s.mirrors()
	if at := s.find(built, addresses); len(at) > 0 {
		t.Errorf("the image contains addresses of mirrors:\n%s", strings.Join(at, "\n"))
	}
	// Control: an image that does contain a mirror's address.
	const leaky = "claude-bottle:leaky"
	s.build("FROM "+image+"\nUSER root\nRUN --mount=type=secret,id=sources cp /run/secrets/sources /etc/apt/\n", leaky)
	if at := s.find(s.target("docker.io/library/"+leaky), addresses); len(at) == 0 {
		t.Error("control: the search does not find the address")
	}
}

func newScene(t *testing.T) *scene {
	t.Helper()
	mirror := os.Getenv("LAB_MIRROR")
	if mirror == "" {
		t.Fatal("this test must be run by scripts/agent-image (make agent-image)")
	}
	s := &scene{t: t, dir: t.TempDir(), ctx: namespaces.WithNamespace(context.Background(), namespace)}
	s.write("bottle.yaml", fmt.Sprintf(manifest, mirror))
	var err error
	if s.ctrd, err = containerd.New(os.Getenv("CONTAINERD_ADDRESS")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.must(s.ctrd.Close()) })
	t.Cleanup(s.clean)
	r, w := io.Pipe()
	go func() {
		from := namespaces.WithNamespace(s.ctx, os.Getenv("CONTAINERD_NAMESPACE"))
		w.CloseWithError(s.ctrd.Export(from, w, archive.WithImage(s.ctrd.ImageService(), base)))
	}()
	if _, err := s.ctrd.Import(s.ctx, r); err != nil {
		t.Fatalf("copy the base image: %v (scripts/lab up --with-base)", err)
	}
	return s
}

// clean removes everything the test created in containerd.
func (s *scene) clean() {
	list, err := s.ctrd.ImageService().List(s.ctx)
	s.must(err)
	for _, img := range list {
		s.must(s.ctrd.ImageService().Delete(s.ctx, img.Name, images.SynchronousDelete()))
	}
	if _, err := s.bottle("build", "--prune"); err != nil {
		s.t.Error(err)
	}
	s.must(s.ctrd.NamespaceService().Delete(s.ctx, namespace))
}

func (s *scene) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Error(err)
	}
}

func (s *scene) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// bottle runs bottle and returns its standard output. An error includes its standard
// error.
func (s *scene) bottle(args ...string) (stdout string, err error) {
	ctx, cancel := context.WithTimeout(s.ctx, 20*time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, labtest.Program(s.t), args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, &out, &errs
	cmd.Env = append(os.Environ(), "CONTAINERD_NAMESPACE="+namespace, "BOTTLE_STATE_DIR="+filepath.Join(s.dir, "state"))
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("bottle %s: %w\n%s%s", args[0], err, out.String(), errs.String())
	}
	return out.String(), nil
}

func (s *scene) run(agent string, args ...string) string {
	s.t.Helper()
	out, err := s.bottle(append([]string{"run", agent, "--proxy", "builtin", "--yes", "--trust", "--"}, args...)...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// want verifies that each line contains the corresponding string.
func (s *scene) want(out string, lines []string) {
	s.t.Helper()
	got := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if len(got) != len(lines) {
		s.t.Fatalf("%d lines, want %d:\n%s", len(got), len(lines), out)
	}
	for i, want := range lines {
		if !strings.Contains(got[i], want) || want == "" && got[i] != "" {
			s.t.Errorf("line %d is %q, want it to contain %q", i+1, got[i], want)
		}
	}
}

func (s *scene) build(dockerfile, name string, args ...string) {
	s.t.Helper()
	if err := s.tryBuild(dockerfile, name, args...); err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) tryBuild(dockerfile, name string, args ...string) error {
	s.t.Helper()
	s.write("Dockerfile", dockerfile)
	mirror := os.Getenv("LAB_MIRROR")
	_, err := s.bottle(append([]string{
		"build", "-t", name, "--secret", "id=sources,src=" + mirror + "/sources.list", "--secret", "id=goproxy,src=" + mirror + "/goproxy", s.dir,
	}, args...)...)
	return err
}

// goModules downloads a module of this project's in a build's step, whose proxy lets it
// through, and checks it with its go.sum. The control is a proxy that does not.
func (s *scene) goModules() {
	s.t.Helper()
	const module = "golang.org/x/sync"
	root, err := exec.Command("go", "env", "GOROOT").Output()
	s.must(err)
	goroot := strings.TrimSpace(string(root))
	s.must(os.Mkdir(filepath.Join(s.dir, "go"), 0o700))
	for _, name := range []string{"bin/go", "go.env", "VERSION"} {
		data, err := os.ReadFile(filepath.Join(goroot, name))
		s.must(err)
		s.must(os.WriteFile(filepath.Join(s.dir, "go", filepath.Base(name)), data, 0o700))
	}
	sums, err := os.ReadFile("../../go.sum")
	s.must(err)
	var mine, version string
	for line := range strings.Lines(string(sums)) {
		if fields := strings.Fields(line); fields[0] == module {
			mine += line
			version = strings.TrimSuffix(fields[1], "/go.mod")
		}
	}
	s.write("go.sum", mine)
	s.write("go.mod", "module test\n\ngo 1.24\n\nrequire "+module+" "+version+"\n")
	const dockerfile = `FROM ` + base + `
USER root
COPY go /usr/local/go/
COPY go.mod go.sum /src/
WORKDIR /src
RUN --mount=type=secret,id=goproxy mkdir /usr/local/go/bin && mv /usr/local/go/go /usr/local/go/bin/go && \
  export GOPROXY=$(cat /run/secrets/goproxy) GOFLAGS=-mod=mod GOTOOLCHAIN=local GOROOT=/usr/local/go GOMODCACHE=/modules GOCACHE=/tmp HOME=/tmp && \
  /usr/local/go/bin/go mod download -x && /usr/local/go/bin/go mod verify && test -d /modules/` + module + `@*
`
	s.build(dockerfile, "go-modules:latest")
	if err := s.tryBuild(strings.Replace(dockerfile, "mod verify", "mod verify #", 1), "go-modules:refused", "--allow", "other.test"); err == nil || !strings.Contains(err.Error(), "Forbidden") {
		s.t.Errorf("a proxy that does not allow the mirror: %v", err)
	}
}

func (s *scene) target(name string) ocispec.Descriptor {
	s.t.Helper()
	img, err := s.ctrd.ImageService().Get(s.ctx, name)
	if err != nil {
		s.t.Fatal(err)
	}
	return img.Target
}

// mirrors returns the addresses of the lab's mirror and of the Debian mirror behind
// it, which the base was built from. npm's address is part of Claude Code's program.
func (s *scene) mirrors() []string {
	s.t.Helper()
	data, err := os.ReadFile(filepath.Join(os.Getenv("LAB_MIRROR"), "addresses"))
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.Fields(string(data))
}

// find returns where the image contains one of the words: in its manifest, its
// configuration, or the names and contents of files in its layers.
func (s *scene) find(target ocispec.Descriptor, words []string) []string {
	s.t.Helper()
	var found []string
	layers := 0
	err := images.Walk(s.ctx, images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		at, err := s.ctrd.ContentStore().ReaderAt(ctx, d)
		if err != nil {
			return nil, err
		}
		defer func() { _ = at.Close() }()
		r, err := compression.DecompressStream(content.NewReader(at))
		if err != nil {
			return nil, err
		}
		defer func() { _ = r.Close() }()
		if images.IsLayerType(d.MediaType) {
			layers++
		}
		hits, err := search(r, words)
		for _, hit := range hits {
			found = append(found, fmt.Sprintf("%s %s: %s", d.MediaType, d.Digest, hit))
		}
		if err != nil {
			return nil, err
		}
		return images.Children(ctx, s.ctrd.ContentStore(), d)
	}), target)
	if err != nil {
		s.t.Fatal(err)
	}
	if layers < 3 {
		s.t.Errorf("only %d layers were searched", layers)
	}
	return found
}

// search returns the words that r contains.
func search(r io.Reader, words []string) ([]string, error) {
	const longest = 4096 // length of a word
	buf := make([]byte, 0, 1<<20)
	found := map[string]bool{}
	for {
		n, err := io.ReadFull(r, buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		for _, w := range words {
			found[w] = found[w] || bytes.Contains(buf, []byte(w))
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		// A word may span two reads.
		buf = buf[:copy(buf, buf[len(buf)-longest:])]
	}
	var out []string
	for w, contained := range found {
		if contained {
			out = append(out, w)
		}
	}
	return out, nil
}
