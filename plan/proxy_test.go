package plan

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/caller"

	"github.com/bot-bottle/bottle/manifest"
)

const (
	pipelockRef    = "ghcr.io/pipelab-org/pipelock:3.8.0"
	pipelockDigest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
)

// newPipelockScene returns a scene whose host has pipelock's default image.
func newPipelockScene(t *testing.T, bottle string) *scene {
	s := newScene(t, bottle, "")
	s.spec.Proxy = ""
	s.host.images[pipelockRef] = ImageInfo{Ref: pipelockRef, Digest: pipelockDigest}
	return s
}

func TestPrepareProxyKind(t *testing.T) {
	// The default, and its overrides.
	if got := newPipelockScene(t, "").good().Proxy; got != (Proxy{Kind: "pipelock", Image: pipelockRef, Digest: pipelockDigest, Version: "3.8.0"}) {
		t.Errorf("default: %+v", got)
	}
	if got := newPipelockScene(t, "proxy: {kind: builtin}").good().Proxy; got != (Proxy{Kind: "builtin"}) {
		t.Errorf("manifest: %+v", got)
	}
	s := newPipelockScene(t, "proxy: {kind: pipelock}")
	s.spec.Proxy = manifest.ProxyBuiltin
	if got := s.good().Proxy; got != (Proxy{Kind: "builtin"}) {
		t.Errorf("flag: %+v", got)
	}
	s.spec.Proxy = "squid"
	s.bad(`unknown proxy "squid"`, "--proxy pipelock or --proxy builtin")
}

func TestPrepareProxyMemory(t *testing.T) {
	if got := newPipelockScene(t, "proxy: {memory: 1GiB}").good().Proxy; got.Memory != 1<<30 {
		t.Errorf("pipelock: %+v", got)
	}
	if got := newPipelockScene(t, "proxy: {kind: builtin, memory: 256MiB}").good().Proxy; got.Memory != 256<<20 {
		t.Errorf("built-in: %+v", got)
	}
	newPipelockScene(t, "proxy: {memory: 512MiB}").bad("invalid memory of the proxy: 512 MiB (min 768 MiB for pipelock)", "proxy.memory")
	newPipelockScene(t, "proxy: {kind: builtin, memory: 255MiB}").bad("invalid memory of the proxy: 255 MiB (min 256 MiB for builtin)", "proxy.memory")
}

func TestPreparePipelock(t *testing.T) {
	s := newPipelockScene(t, "")
	delete(s.host.images, pipelockRef)
	if got := s.good().Proxy; got != (Proxy{Kind: "pipelock", Image: pipelockRef, Version: "3.8.0", Pull: true}) {
		t.Errorf("a missing image: %+v", got)
	}
	s.spec.Pull = PullNever
	s.bad("proxy image "+pipelockRef, "not in containerd's store", "--proxy builtin")

	s = newPipelockScene(t, "proxy: {image: 'example.test/pipelock:4.1.0'}")
	s.bad(`unknown version of pipelock "4.1.0"`, "--proxy builtin")

	// The version is not guessed.
	for _, image := range []string{"example.test/pipelock", "example.test/pipelock:latest", "example.test/pipelock@" + pipelockDigest} {
		newPipelockScene(t, "proxy: {image: '"+image+"'}").bad("unknown version of pipelock", "proxy.version")
	}
	s = newPipelockScene(t, "proxy: {image: 'example.test/pipelock:latest', version: 2.3.0}")
	s.host.images["example.test/pipelock:latest"] = ImageInfo{Ref: "example.test/pipelock:latest", Digest: pipelockDigest}
	if got := s.good().Proxy; got.Version != "2.3.0" {
		t.Errorf("a stated version: %+v", got)
	}

	// A policy that pipelock does not support is an error with the reason.
	newPipelockScene(t, "egress: {allow: [a.test], allow_private: ['*.test']}").bad("a wildcard needs at least two labels", "built-in proxy")
	newPipelockScene(t, "egress: {allow: ['*.a.test'], deny: ['b.a.test:443']}").bad("it denies a host on every port only", "built-in proxy")
	newScene(t, "egress: {allow: ['*.a.test'], allow_private: ['*.test'], deny: ['b.a.test:443']}", "").good()

	s = newPipelockScene(t, "")
	s.spec.Learn = true
	s.bad("pipelock cannot learn", "--proxy builtin")
}

func TestPreparePipelockDigest(t *testing.T) {
	other := "sha256:" + strings.Repeat("b", 64)
	named := func(digest string) *scene { return newPipelockScene(t, "proxy: {image: '"+pipelockRef+"@"+digest+"'}") }
	if p := named(pipelockDigest).good(); !p.Proxy.Pinned || p.Proxy.Image != pipelockRef || len(p.Warnings) != 1 || !strings.Contains(p.Warnings[0], "not tested with pipelock 3.8.0") {
		t.Errorf("%+v, warnings %q", p.Proxy, p.Warnings)
	}
	named(other).bad("has another digest in containerd's store: "+pipelockDigest, "pull it again")

	// Stored under its digest, as after a pull by digest.
	s := named(other)
	byDigest := "ghcr.io/pipelab-org/pipelock@" + other
	s.host.images[byDigest] = ImageInfo{Ref: byDigest, Digest: other}
	if p := s.good(); p.Proxy.Image != byDigest || p.Proxy.Version != "3.8.0" {
		t.Errorf("%+v", p.Proxy)
	}
}

func TestProxyWarnings(t *testing.T) {
	has := func(s *scene, want string) {
		t.Helper()
		if w := s.good().Warnings; !slices.ContainsFunc(w, func(s string) bool { return strings.Contains(s, want) }) {
			t.Errorf("missing %q in %q", want, w)
		}
	}
	hasNot := func(s *scene, not string) {
		t.Helper()
		if w := s.good().Warnings; slices.ContainsFunc(w, func(s string) bool { return strings.Contains(s, not) }) {
			t.Errorf("unexpected %q in %q", not, w)
		}
	}
	has(newPipelockScene(t, ""), "is not pinned: name it with its digest, "+pipelockRef+"@"+pipelockDigest)
	has(newPipelockScene(t, "egress: {allow: [a.test, 'b.test:8443']}"), "pipelock does not check ports")
	has(newScene(t, "egress: {allow: [localhost]}", ""), `allow entry "localhost": cannot be reached: resolves to a loopback address`)
	has(newScene(t, "egress: {allow: [10.77.0.1], allow_private: [10.0.0.0/8]}", ""), "an address of the sandbox itself")
	has(newScene(t, "egress: {allow: [10.1.2.3]}", ""), "a private address that allow_private does not list")
	hasNot(newPipelockScene(t, "egress: {allow: [a.test, b.test]}"), "pipelock does not check ports")

	// Whoever made the proxy's image decides what leaves.
	const unknown = "is not an official release of pipelock: whoever made it"
	image := func(name string) *scene {
		s := newPipelockScene(t, "proxy: {image: '"+name+"', version: 2.3.0}")
		s.spec.Pull = PullMissing
		return s
	}
	for _, name := range []string{"theirs/pipelock:2.3.0", "ghcr.io/pipelab-org/pipelock2:3.8.0", "docker.io/pipelab-org/pipelock:3.8.0", "ghcr.io/pipelab-org/pipelock:latest", "theirs/pipelock@" + pipelockDigest} {
		has(image(name), unknown)
	}
	for _, name := range []string{pipelockRef, "ghcr.io/luckypipewrench/pipelock:v2.3.0", "ghcr.io/pipelab-org/pipelock:latest@" + pipelockDigest} {
		hasNot(image(name), unknown)
	}
	hasNot(newPipelockScene(t, ""), unknown)
	hasNot(newScene(t, "", ""), unknown)

	// Plain HTTP has limits under pipelock that its answers do not show.
	const http = "plain HTTP under pipelock"
	has(newPipelockScene(t, "egress: {allow: [a.test, 'b.test:80', 'c.test:1-1024']}"), http+" (b.test:80, c.test:1-1024): compressed responses are refused, and those over 32 MB are cut")
	hasNot(newPipelockScene(t, "egress: {allow: [a.test, 'b.test:443', 'c.test:8000-9000']}"), http)
	hasNot(newScene(t, "egress: {allow: ['b.test:80']}", ""), http)
	hasNot(newScene(t, "egress: {allow: [a.test, 'b.test:8443']}", ""), "ports")

	s := newScene(t, "", "")
	s.spec.Learn = true
	has(s, "NOTHING IS BLOCKED")
	if !s.good().Learn {
		t.Error("the plan lacks Learn")
	}
}

func TestPipelockConfig(t *testing.T) {
	m, err := manifest.Load("../manifest/testdata/good/all.yaml", caller.Caller{UID: os.Getuid(), GID: os.Getgid()})
	if err != nil {
		t.Fatal(err)
	}
	got, err := PipelockConfig(m, "impl")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"mode: strict\n", "- api.anthropic.com\n", `- '*.github.com'` + "\n", "- git.example.com\n", "- 10.1.2.0/24\n", "- intranet.example\n"} {
		if !strings.Contains(string(got), want) {
			t.Errorf("missing %q in\n%s", want, got)
		}
	}
	if strings.Contains(string(got), "8443") {
		t.Errorf("an entry with a port, which pipelock would parse as a part of the name:\n%s", got)
	}
	if _, err := PipelockConfig(m, "nobody"); err == nil {
		t.Error("no error for an unknown agent")
	}
}
