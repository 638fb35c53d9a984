package buildkit

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/egress"
)

// proxied makes the builder's steps use a proxy that allows hosts of the world, whose
// addresses are special ones.
func (b *builder) proxied(allow ...string) {
	b.cfg.StepProxy = func(ctx context.Context, l net.Listener) error {
		s, err := egress.New(egress.Config{Entries: egress.Entries{
			Allow: allow, AllowPrivate: []string{"198.51.100.0/24", "198.51.101.0/24", "203.0.113.0/24"},
		}}, io.Discard)
		if err != nil {
			return err
		}
		return s.Serve(ctx, l)
	}
}

// TestStepNetwork: a step reaches an allowed host through the proxy, and neither another
// host, nor the host's loopback interface, nor its abstract sockets. The control is the
// host's network. The leak check verifies that nothing is left behind.
func TestStepNetwork(t *testing.T) {
	b := newBuilder(t)
	victim, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	abstract, err := net.Listen("unix", "@bottle-step-victim")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []net.Listener{victim, abstract} {
		defer func() { must(t, l.Close()) }()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, "reached\n")
				_ = c.Close()
			}
		}()
	}
	port := victim.Addr().(*net.TCPAddr).Port
	b.write("Dockerfile", fmt.Sprintf(`FROM claude-bottle:latest
USER 0
RUN bash -c 'exec 3<>/dev/tcp/127.0.0.1/%d && cat <&3' >/loopback 2>/dev/null || true; \
    grep -c bottle-step-victim /proc/net/unix >/abstract || true; \
    ls /sys/class/net >/links; ip route >/routes; \
    curl -sS -o /allowed https://allowed.test/ 2>/allowed.err; echo $? >/allowed.code; \
    curl -sS -o /dev/null https://other.test/ 2>/dev/null; echo $? >/other.code; \
    env | grep -i _proxy | sort >/variables
`, port))
	files := func() map[string]string {
		t.Helper()
		b.good(Request{Names: []string{b.ref()}, NoCache: true})
		_, files := b.read(b.ref(), "loopback", "abstract", "links", "allowed.code", "allowed.err", "other.code", "variables")
		return files
	}
	b.proxied("allowed.test")
	got := files()
	for name, want := range map[string]string{"loopback": "", "abstract": "0\n", "allowed.code": "0\n", "other.code": "56\n"} {
		if got[name] != want {
			t.Errorf("%s: %q, want %q (%s)", name, got[name], want, got["allowed.err"])
		}
	}
	for _, name := range []string{"HTTP_PROXY", "https_proxy"} {
		if !strings.Contains(got["variables"], name+"=http://127.0.0.1:3128\n") {
			t.Errorf("variables:\n%s", got["variables"])
		}
	}
	b.cfg.StepProxy = nil
	control := files()
	for name, want := range map[string]string{"loopback": "reached\n", "abstract": "1\n", "variables": ""} {
		if control[name] != want {
			t.Errorf("control: %s: %q, want %q", name, control[name], want)
		}
	}
}

// TestStepDownloads: what ADD downloads goes through the proxy too, RUN --network=host is
// refused, and the cache works without and with a proxy.
func TestStepDownloads(t *testing.T) {
	b := newBuilder(t)
	victim := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "reached") }))
	defer victim.Close()
	b.write("Dockerfile", "FROM scratch\nADD "+victim.URL+"/file /file\n")
	b.proxied("allowed.test")
	if _, err := Build(b.ctx, b.cfg, Request{Context: b.dir, Dockerfile: filepath.Join(b.dir, "Dockerfile"), Progress: "quiet", Out: io.Discard}); err == nil {
		t.Error("ADD reached the host's loopback interface")
	}
	b.write("Dockerfile", "FROM bottle-demo:latest\nRUN --network=host true\n")
	if _, err := Build(b.ctx, b.cfg, Request{Context: b.dir, Dockerfile: filepath.Join(b.dir, "Dockerfile"), Progress: "quiet", Out: io.Discard}); err == nil || !strings.Contains(err.Error(), "network.host") {
		t.Errorf("RUN --network=host: %v", err)
	}
	b.write("Dockerfile", "FROM bottle-demo:latest\nRUN date +%N >/tmp/now\n")
	b.good(Request{Names: []string{b.ref()}})
	_, first := b.read(b.ref(), "tmp/now")
	b.cfg.StepProxy = nil
	b.good(Request{Names: []string{b.ref()}})
	if _, again := b.read(b.ref(), "tmp/now"); again["tmp/now"] != first["tmp/now"] {
		t.Error("a step ran again although only the proxy differs")
	}
	// Control: without the proxy the victim is reached.
	b.write("Dockerfile", "FROM scratch\nADD "+victim.URL+"/file /file\n")
	b.good(Request{Names: []string{b.ref()}})
	if _, files := b.read(b.ref(), "file"); files["file"] != "reached" {
		t.Errorf("control: %q", files["file"])
	}
}
