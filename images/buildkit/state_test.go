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

// TestNetwork: a step has the host's network, down to its loopback, unless it
// wants none. That nothing of it is left is the leak check's.
func TestNetwork(t *testing.T) {
	b := newBench(t)
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
			_, _ = io.WriteString(c, "reached\n") // the test sees what arrives
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

// TestCacheSize: what builds keep stays under its bound, which without one it
// would not. What an image in the store has too is not counted.
func TestCacheSize(t *testing.T) {
	b := newBench(t)
	kept := func(steps int) int64 {
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
	base := kept(1) - layer
	if free := kept(4); free < base+4*layer {
		t.Errorf("without a bound %d bytes were kept beside the base's %d, so that the test shows nothing", free-base, base)
	}
	b.cfg.CacheSize = 20 << 20
	if bound := kept(4); bound > base+b.cfg.CacheSize || bound < base+layer {
		t.Errorf("with a bound of 20 MiB %d bytes were kept beside the base's %d", bound-base, base)
	}
}

// TestLowerBound: a bound that is lower than the last one takes effect even when
// there is nothing to build.
func TestLowerBound(t *testing.T) {
	b := newBench(t)
	b.cfg.CacheSize = 1 << 30
	b.write("Dockerfile", "FROM bottle-demo:latest\nRUN dd if=/dev/urandom of=/tmp/1 bs=1M count=8 2>/dev/null\n")
	if !b.good(Request{}).Worked || b.good(Request{}).Worked {
		t.Error("a first build has to work, and a second one not")
	}
	b.cfg.CacheSize = 1 << 20
	if b.good(Request{}).Worked {
		t.Error("the bound alone makes a build work")
	}
	if !b.good(Request{}).Worked {
		t.Error("the cache still has what exceeds its bound")
	}
}

// TestLostContent: somebody has removed from containerd what the cache says is
// there. It is made again.
func TestLostContent(t *testing.T) {
	b := newBench(t)
	b.write("Dockerfile", "FROM bottle-demo:latest\nRUN echo 1 >/tmp/1\nRUN echo 2 >/tmp/2\n")
	req := Request{Names: []string{b.ref()}}
	b.good(req)
	must(t, b.c.ImageService().Delete(b.ctx, b.ref()))
	list := b.leases(b.cfg)
	if len(list) == 0 {
		t.Fatal("a build keeps nothing, so that the test shows nothing")
	}
	for _, id := range list {
		must(t, b.c.LeasesService().Delete(b.ctx, leases.Lease{ID: id}, leases.SynchronousDelete))
	}
	if !b.good(req).Worked {
		t.Error("nothing was made again")
	}
	if _, files := b.read(b.ref(), "tmp/1", "tmp/2"); files["tmp/1"] != "1\n" || files["tmp/2"] != "2\n" {
		t.Errorf("%q", files)
	}
}

// TestLostState: what a removed state folder has kept in containerd is freed by
// the next build; a folder that is still there keeps its own.
func TestLostState(t *testing.T) {
	b := newBench(t)
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
		t.Errorf("another state folder's build took the cache away:\n%s", b.log.String())
	}
	before := b.leases(other)
	if len(before) == 0 {
		t.Fatal("a build keeps nothing, so that the test shows nothing")
	}
	must(t, os.RemoveAll(other.complete().stateDir()))
	b.good(Request{})
	if after := b.leases(other); len(after) > 0 {
		t.Errorf("left of a lost state: %v", after)
	}
	if len(b.leases(mine)) == 0 {
		t.Error("the other's were removed too")
	}
}

func (b *bench) leases(cfg Config) []string {
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

// TestHost builds by a buildkitd, here one that this package serves on a socket,
// with a store of its own. The image has to arrive in ours.
func TestHost(t *testing.T) {
	b := newBench(t)
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
