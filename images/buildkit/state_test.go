package buildkit

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
)

// TestNetwork: a step uses the host's network including loopback, unless it disables
// it. The leak check verifies that nothing is left behind.
func TestNetwork(t *testing.T) {
	b := newBuilder(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { must(t, l.Close()) }()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "reached\n") // the step's output shows whether it arrives
			_ = c.Close()
		}
	}()
	port := l.Addr().(*net.TCPAddr).Port
	const dockerfile = "FROM bottle-demo:latest\nRUN %s nc 127.0.0.1 %d </dev/null >/tmp/out || true\n"
	for option, want := range map[string]string{"": "reached\n", "--network=host": "reached\n", "--network=none": ""} {
		b.write("Dockerfile", fmt.Sprintf(dockerfile, option, port))
		b.good(Request{Names: []string{b.ref()}})
		if _, files := b.read(b.ref(), "tmp/out"); files["tmp/out"] != want {
			t.Errorf("%q: the step got %q, want %q", option, files["tmp/out"], want)
		}
	}
}

// TestCacheSize: the cache stays below its limit, and exceeds it without one. Content
// shared with an image in the store is not counted.
func TestCacheSize(t *testing.T) {
	b := newBuilder(t)
	cached := func(steps int) int64 {
		t.Helper()
		for i := range steps {
			b.write("Dockerfile", fmt.Sprintf("FROM bottle-demo:latest\nRUN dd if=/dev/urandom of=/tmp/%d bs=1M count=8 2>/dev/null\n", i))
			b.good(Request{})
		}
		n, err := Prune(b.ctx, b.cfg, true)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	const layer = 8 << 20
	base := cached(1) - layer
	if free := cached(4); free < base+4*layer {
		t.Errorf("without a limit %d bytes were cached in addition to the base's %d: the test is not meaningful", free-base, base)
	}
	b.cfg.CacheSize = 20 << 20
	if limited := cached(4); limited > base+b.cfg.CacheSize || limited < base+layer {
		t.Errorf("with a limit of 20 MiB %d bytes were cached in addition to the base's %d", limited-base, base)
	}
}

// TestLowerLimit: a lower limit takes effect even if there is nothing to build.
func TestLowerLimit(t *testing.T) {
	b := newBuilder(t)
	b.cfg.CacheSize = 1 << 30
	b.write("Dockerfile", "FROM bottle-demo:latest\nRUN dd if=/dev/urandom of=/tmp/1 bs=1M count=8 2>/dev/null\n")
	if !b.good(Request{}).Executed || b.good(Request{}).Executed {
		t.Error("the first build must execute steps, and the second must not")
	}
	b.cfg.CacheSize = 1 << 20
	if b.good(Request{}).Executed {
		t.Error("a new limit alone caused a step to be executed")
	}
	if !b.good(Request{}).Executed {
		t.Error("the cache still exceeds its limit")
	}
}

// TestLostContent: content of the cache was removed from containerd. It is built
// again.
func TestLostContent(t *testing.T) {
	b := newBuilder(t)
	b.write("Dockerfile", "FROM bottle-demo:latest\nRUN echo 1 >/tmp/1\nRUN echo 2 >/tmp/2\n")
	req := Request{Names: []string{b.ref()}}
	b.good(req)
	must(t, b.c.ImageService().Delete(b.ctx, b.ref()))
	list := b.leases(b.cfg)
	if len(list) == 0 {
		t.Fatal("a build caches nothing: the test is not meaningful")
	}
	for _, id := range list {
		must(t, b.c.LeasesService().Delete(b.ctx, leases.Lease{ID: id}, leases.SynchronousDelete))
	}
	if !b.good(req).Executed {
		t.Error("no step was executed")
	}
	if _, files := b.read(b.ref(), "tmp/1", "tmp/2"); files["tmp/1"] != "1\n" || files["tmp/2"] != "2\n" {
		t.Errorf("%q", files)
	}
}

// TestLostState: the next build frees what a removed state directory kept in
// containerd, and does not affect other state directories.
func TestLostState(t *testing.T) {
	b := newBuilder(t)
	b.write("Dockerfile", "FROM bottle-demo:latest\nRUN echo 1 >/tmp/1\n")
	other := b.cfg
	other.StateDir = t.TempDir()
	b.good(Request{})
	mine := b.cfg
	b.cfg = other
	b.good(Request{})
	b.cfg = mine
	b.good(Request{})
	if !strings.Contains(b.log.String(), "CACHED") {
		t.Errorf("a build with another state directory removed the cache:\n%s", b.log.String())
	}
	before := b.leases(other)
	if len(before) == 0 {
		t.Fatal("a build caches nothing: the test is not meaningful")
	}
	must(t, os.RemoveAll(other.complete().stateDir()))
	b.good(Request{})
	if after := b.leases(other); len(after) > 0 {
		t.Errorf("leases of a lost state: %v", after)
	}
	if len(b.leases(mine)) == 0 {
		t.Error("leases of the other state directory were removed")
	}
}

func (b *builder) leases(cfg Config) []string {
	b.t.Helper()
	list, err := b.c.LeasesService().List(b.ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	var out []string
	for _, l := range list {
		if l.Labels[labelState] == cfg.complete().stateDir() {
			out = append(out, l.ID)
		}
	}
	return out
}

// TestHost builds with a buildkitd, here served by this package on a socket with a
// separate store. The image must arrive in ours.
func TestHost(t *testing.T) {
	b := newBuilder(t)
	daemon := b.cfg
	daemon.StateDir = t.TempDir()
	s, err := open(b.ctx, daemon.complete())
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.server.Serve(l) }()
	b.write("Dockerfile", "FROM bottle-demo:latest\nRUN echo remote >/tmp/where\n")
	local := b.cfg
	b.cfg.Host = "unix://" + socket
	ref := b.ref()
	_, err = b.build(Request{Names: []string{ref}})
	log := b.log.String()
	b.cfg = local
	must(t, s.close(b.ctx))
	must(t, <-served)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	if _, err := Prune(b.ctx, daemon, true); err != nil {
		t.Error(err)
	}
	if _, files := b.read(ref, "tmp/where"); files["tmp/where"] != "remote\n" {
		t.Errorf("%q", files)
	}
	b.cfg.Host = "unix://" + filepath.Join(t.TempDir(), "nobody")
	b.bad(Request{Names: []string{ref}}, "BUILDKIT_HOST", "nobody")
	b.cfg = local
}
