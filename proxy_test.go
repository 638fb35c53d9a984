package bottle

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/plan"
)

const shapeRef = "registry.test/pipelock:2.3.0"

// putShape creates an image that replaces pipelock's and behaves as its entrypoint
// requests.
func putShape(t *testing.T, entrypoint ...string) (digest string) {
	t.Helper()
	return labtest.PutImage(t, shapeRef, ocispec.ImageConfig{Entrypoint: entrypoint},
		map[string][]byte{"pipelock": labtest.Build(t, "github.com/bot-bottle/bottle/scripts/pipelockshape")})
}

func shapeManifest(proxy string) string {
	return strings.Replace(simpleManifest, "    egress:", "    proxy: {"+proxy+"}\n    egress:", 1)
}

// shapePlan returns a plan whose proxy is that image.
func shapePlan(t *testing.T, e *Engine) *plan.Plan {
	t.Helper()
	spec := testSpec(t, shapeManifest("kind: pipelock, image: '"+shapeRef+"'"))
	spec.Proxy = ""
	return prepare(t, e, spec)
}

// TestProxyImageFails launches with images whose pipelock cannot start, exits immediately,
// never becomes healthy or logs nothing: the error contains the end of the log, and
// nothing is left.
func TestProxyImageFails(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	for name, c := range map[string]struct {
		entrypoint []string
		want       []string
	}{
		"no such program":         {[]string{"/nothing"}, []string{"/nothing"}},
		"exits":                   {[]string{"/pipelock", "exit"}, []string{"proxy exited immediately", "its log ends with: ", "config: unknown key"}},
		"unhealthy":               {[]string{"/pipelock", "unhealthy"}, []string{"health endpoint did not answer within 2s", `"event":"startup"`}},
		"silent":                  {[]string{"/pipelock", "silent"}, []string{"health endpoint did not answer", "its log is empty"}},
		"image has no entrypoint": {nil, []string{"image has no entrypoint"}},
	} {
		t.Run(name, func(t *testing.T) {
			leakcheck.Check(t)
			defer setProxyTimeout(e, 2*time.Second)()
			putShape(t, c.entrypoint...)
			b, err := e.Launch(t.Context(), shapePlan(t, e))
			if err == nil {
				remove(t, b)
				t.Fatal("launched")
			}
			for _, want := range append(c.want, shapeRef) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want %q in it", err, want)
				}
			}
			if !strings.Contains(hint.Of(err), "--proxy builtin") {
				t.Errorf("the hint is %q", hint.Of(err))
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error has several lines: %q", err)
			}
		})
	}
}

func setProxyTimeout(e *Engine, d time.Duration) func() {
	before := e.proxies.StartTimeout
	e.proxies.StartTimeout = d
	return func() { e.proxies.StartTimeout = before }
}

// TestProxyImageFaults fails the steps of such a launch.
func TestProxyImageFaults(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	putShape(t, "/pipelock", "serve")
	plan := shapePlan(t, e)
	if err := e.images.Unpack(t.Context(), shapeRef); err != nil { // stays as long as the image
		t.Fatal(err)
	}
	for _, step := range []string{"prepare proxy image", "create proxy", "attach egress network", "start proxy"} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/after=%v", step, after), func(t *testing.T) {
				leakcheck.Check(t)
				defer setHooks(e, testHooks{step: func(s string, done bool) error {
					if s == step && done == after {
						return errInjected
					}
					return nil
				}})()
				if b, err := e.Launch(t.Context(), plan); err == nil {
					remove(t, b)
					t.Error("launched")
				}
			})
		}
	}
}

// TestProxyImageVersion launches images whose pipelock is not the version that the plan
// has from their tag: that is reported.
func TestProxyImageVersion(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	var notices []string
	e.cfg.Notice = func(text string) { notices = append(notices, text) }
	for mode, want := range map[string]string{
		"serve": "", "other": "contains pipelock 3.7.1, and the configuration is for 2.3.0", "unversioned": "does not report its version",
	} {
		t.Run(mode, func(t *testing.T) {
			leakcheck.Check(t)
			putShape(t, "/pipelock", mode)
			notices = nil
			b, err := e.Launch(t.Context(), shapePlan(t, e))
			if err != nil {
				t.Fatal(err)
			}
			remove(t, b)
			if got := strings.Join(notices, "\n"); (want == "") != (got == "") || !strings.Contains(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

// TestProxyImageRuns verifies that the proxy runs with bottle's settings and not with
// those of its image, that its traffic is limited to the ports of the policy, and that a
// change of the policy is in force when Allow returns.
func TestProxyImageRuns(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	digest := putShape(t, "/pipelock", "serve")
	p := shapePlan(t, e)
	if p.Proxy != (plan.Proxy{Kind: manifest.ProxyPipelock, Image: shapeRef, Digest: digest, Version: "2.3.0"}) {
		t.Errorf("the plan's proxy is %+v", p.Proxy)
	}
	b, err := e.Launch(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	defer remove(t, b)
	status := proxyStatus(t, e, b.Name)
	for _, want := range []string{
		"Uid:\t65534\t65534\t65534\t65534\n", "Gid:\t65534\t65534\t65534\t65534\n", "CapEff:\t0000000000000000\n",
		"CapBnd:\t0000000000000000\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n",
	} {
		if !strings.Contains(status, want) {
			t.Errorf("no %q in\n%s", want, status)
		}
	}
	if got := proxyMemory(t, e, b.Name); got != strconv.FormatInt(egress.PipelockMemory, 10) {
		t.Errorf("memory limit: %s", got)
	}
	if env := proxyFile(t, e, b.Name, "environ"); !strings.Contains("\x00"+env, "\x00"+egress.PipelockEnv(egress.PipelockMemory)+"\x00") {
		t.Errorf("no %s in the environment %q", egress.PipelockEnv(egress.PipelockMemory), env)
	}
	mounts := proxyFile(t, e, b.Name, "mounts")
	for _, at := range []string{" / ", " /config ", " /etc/resolv.conf ", " /etc/hosts "} {
		if !readOnlyMount(mounts, at) {
			t.Errorf("%s is not a read-only mount of\n%s", at, mounts)
		}
	}
	connect := func(target string) string {
		out, _ := output(t, e, b.Name, "bash", "-c", `exec 3<>/dev/tcp/10.77.0.1/8888; printf 'CONNECT `+target+` HTTP/1.1\r\nHost: `+target+`\r\n\r\n' >&3; head -n 1 <&3`)
		return out
	}
	if got := connect("allowed.test:443"); !strings.Contains(got, "200") {
		t.Errorf("allowed host: %q", got)
	}
	// The image would allow any port, and a server listens there.
	if got := connect("allowed.test:4444"); !strings.Contains(got, "502") {
		t.Errorf("port outside the policy: %q", got)
	}
	if got := connect("refused.test:443"); !strings.Contains(got, "403") {
		t.Errorf("host outside the policy: %q", got)
	}
	change, err := e.proxies.Allow(t.Context(), b.Name, "REFUSED.test:443")
	if err != nil || !change.Changed || change.Entries[0] != "refused.test:443" {
		t.Fatalf("Allow = %+v, %v", change, err)
	}
	if got := connect("refused.test:443"); !strings.Contains(got, "200") {
		t.Errorf("newly allowed host: %q", got)
	}
	if change, err := e.proxies.Deny(t.Context(), b.Name, "refused.test"); err != nil || !change.Changed {
		t.Fatalf("Deny = %+v, %v", change, err)
	}
	if got := connect("refused.test:443"); !strings.Contains(got, "403") {
		t.Errorf("denied host: %q", got)
	}
	// Ports are not part of pipelock's configuration, so it is not reloaded: it would
	// ignore a reload so soon after another one.
	for _, port := range []string{"8443", "8444"} {
		if change, err := e.proxies.Allow(t.Context(), b.Name, "allowed.test:"+port); err != nil || !change.Changed {
			t.Fatalf("Allow of port %s = %+v, %v", port, change, err)
		}
	}
	hosts, err := e.proxies.Summary(t.Context(), b.Name, time.Time{})
	if err != nil || len(hosts) < 2 || hosts[0].Destination != "refused.test:443" || hosts[0].Refused != 2 {
		t.Errorf("the summary is %+v, %v", hosts, err)
	}
}

func proxyStatus(t *testing.T, e *Engine, name string) string { return proxyFile(t, e, name, "status") }

// proxyFile reads a file of /proc of the proxy's first process.
func proxyFile(t *testing.T, e *Engine, name, file string) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", proxyPID(t, e, name), file))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// proxyMemory returns the memory limit of the proxy's cgroup, of either version.
func proxyMemory(t *testing.T, e *Engine, name string) string {
	t.Helper()
	file := ""
	for line := range strings.Lines(proxyFile(t, e, name, "cgroup")) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if parts[1] == "memory" {
			file = filepath.Join("/sys/fs/cgroup/memory", parts[2], "memory.limit_in_bytes")
			break
		}
		if parts[0] == "0" {
			file = filepath.Join("/sys/fs/cgroup", parts[2], "memory.max")
		}
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func proxyPID(t *testing.T, e *Engine, name string) int {
	t.Helper()
	list, err := e.rt.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		if c.ID == names.Proxy(name) {
			return int(c.PID)
		}
	}
	t.Fatalf("no proxy of %s", name)
	return 0
}

func readOnlyMount(mounts, at string) bool {
	found := false
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		if len(f) > 3 && f[1] == strings.TrimSpace(at) {
			found = f[3] == "ro" || strings.HasPrefix(f[3], "ro,")
		}
	}
	return found
}

// TestProxyDigest verifies that an image with another digest is refused, by Prepare, and
// by Launch if it has changed since.
func TestProxyDigest(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	digest := putShape(t, "/pipelock", "serve")
	spec := testSpec(t, shapeManifest("image: '"+shapeRef+"@"+digest+"'"))
	spec.Proxy = ""
	p := prepare(t, e, spec)
	if !p.Proxy.Pinned || p.Proxy.Digest != digest || p.Proxy.Image != shapeRef {
		t.Errorf("the plan's proxy is %+v", p.Proxy)
	}
	wrong := strings.Replace(digest, digest[7:15], "00000000", 1)
	spec = testSpec(t, shapeManifest("image: '"+shapeRef+"@"+wrong+"'"))
	spec.Proxy = ""
	if _, err := plan.Prepare(t.Context(), spec, e); err == nil || !strings.Contains(err.Error(), "has another digest in containerd's store: "+digest) {
		t.Errorf("wrong digest: %v", err)
	}
	p.Proxy.Digest = wrong
	if b, err := e.Launch(t.Context(), p); err == nil || !strings.Contains(err.Error(), "has changed") {
		t.Errorf("changed image: %v, %v", b, err)
	}
}
