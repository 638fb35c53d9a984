package bottle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/runtime"
	"github.com/bot-bottle/bottle/session"
)

// arrivals counts the traffic that arrived at the suite's victims.
type arrivals struct {
	mu     sync.Mutex
	counts map[string]int
}

func (a *arrivals) add(victim string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.counts[victim]++
}

func (a *arrivals) count(victim string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.counts[victim]
}

// listen receives traffic at victimPort of every address in a namespace.
// An empty path means the host's namespace. IPv6 is disabled in the others.
func (a *arrivals) listen(t *testing.T, who, ns string) {
	t.Helper()
	open := func() error {
		for _, family := range []string{"4", "6"} {
			if family == "6" && ns != "" {
				continue
			}
			l, err := net.Listen("tcp"+family, fmt.Sprintf(":%d", victimPort))
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = l.Close() })
			go a.accept(who, l)
			c, err := net.ListenPacket("udp"+family, fmt.Sprintf(":%d", victimPort))
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = c.Close() })
			go a.receive(who, c)
		}
		return nil
	}
	do := open
	if ns != "" {
		do = func() error { return netns.Do(ns, open) }
	}
	if err := do(); err != nil {
		t.Fatalf("listen in the namespace of the %s: %v", who, err)
	}
}

func (a *arrivals) accept(who string, l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		a.add(who)
		_ = c.Close()
	}
}

func (a *arrivals) receive(who string, c net.PacketConn) {
	buf := make([]byte, 512)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		a.add(who)
		_, _ = c.WriteTo(buf[:n], from) // the reply may be undeliverable
	}
}

// escapeSuite is a test host with victims, another bottle and a prober.
type escapeSuite struct {
	t         *testing.T
	e         *Engine
	arrivals  *arrivals
	probe     string // program of the prober
	other     *Bottle
	openProxy string // address of an open proxy on the host
	work      string // directory on the host that is copied into workspaces
}

const escapeManifest = `
version: 1
bottles:
  dev:
    image: escape:latest
    egress:
      allow:
        - allowed.test
        - "*.wild.test"
        - flip.test
        - private.test
        - private6.test
        - meta.test
        - meta.test:80
        - meta6.test
        - nat64.test
        - mixed.test
        - mixed6.test
        - mapped.test
        - labhost.test:7777
        - loopback.test:7777
        - internal.test:7777
        - zero.test:7777
    limits: {memory: 512MiB, pids: 128, disk: 256MiB}
agents:
  it: {bottle: dev, command: [/probe]}
`

func newEscapeSuite(t *testing.T) *escapeSuite {
	t.Helper()
	s := &escapeSuite{t: t, e: openEngine(t), arrivals: &arrivals{counts: map[string]int{}}}
	s.probe = filepath.Join(t.TempDir(), "probe")
	s.image()
	s.arrivals.listen(t, hostVictim, "")
	for _, path := range []string{hostSocket, abstractSocket} {
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go s.arrivals.accept(hostVictim, l)
	}
	s.write(canary, canaryText)
	s.work = s.workDir()
	t.Cleanup(func() { _ = os.Remove(canary) })
	s.openProxy = serveOpenProxy(t, "", "127.0.0.1:0")
	// The other bottle uses runc, so that a victim can listen in its agent's
	// namespace. gVisor removes the addresses from the namespace.
	s.other = s.launch(runtime.RuntimeRunc, nil)
	dir := s.e.dir(s.other.Name)
	s.arrivals.listen(t, otherVictim, netns.ProxyPath(dir))
	s.arrivals.listen(t, otherAgentVictim, netns.AgentPath(dir))
	return s
}

func (s *escapeSuite) write(file, text string) {
	s.t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// image imports an image with the prober and the user root. It has a symbolic link
// to the canary in place of a file that bottle writes.
func (s *escapeSuite) image() {
	s.t.Helper()
	dir := s.t.TempDir()
	root, archive := filepath.Join(dir, "root"), filepath.Join(dir, "escape.tar")
	for _, d := range []string{"etc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := os.Symlink(canary, filepath.Join(root, "etc/hostname")); err != nil {
		s.t.Fatal(err)
	}
	s.command("go", "build", "-trimpath", "-o", s.probe, "github.com/bot-bottle/bottle/scripts/escape")
	s.command("cp", s.probe, filepath.Join(root, "probe"))
	s.command("go", "run", "github.com/bot-bottle/bottle/scripts/mkimage", "--out", archive, "--ref", "docker.io/library/escape:latest",
		"--user", "0:0", "--layer-dir", root, "--", "/probe")
	s.command("ctr", "images", "import", archive)
	s.t.Cleanup(func() { ctr(s.t, "images", "rm", "--sync", "docker.io/library/escape:latest") })
}

func (s *escapeSuite) command(name string, args ...string) string {
	s.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// workDir creates a directory with links that lead out.
func (s *escapeSuite) workDir() string {
	s.t.Helper()
	dir := s.t.TempDir()
	s.write(filepath.Join(dir, "own"), canaryText)
	up := strings.Repeat("../", 20)
	for name, to := range map[string]string{"absolute": canary, "relative": up + canary[1:], "run": up + "run"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			s.t.Fatal(err)
		}
	}
	return dir
}

// launch launches a bottle whose agent is root and has additional capabilities.
func (s *escapeSuite) launch(runtimeName string, caps []string) *Bottle {
	s.t.Helper()
	spec := testSpec(s.t, escapeManifest)
	spec.Runtime = runtimeName
	return s.launchSpec(spec, caps)
}

// claim is launch for a prepared bottle.
func (s *escapeSuite) claim(runtimeName string, caps []string) *Bottle {
	s.t.Helper()
	spec := testSpec(s.t, strings.Replace(escapeManifest, "command: [/probe]", "command: [/probe], pool: 1", 1))
	spec.Runtime = runtimeName
	ahead, e := spec, *s.e
	ahead.NamesOnly = true
	setHooks(&e, testHooks{addCaps: caps})
	names := fill(s.t, &e, prepare(s.t, &e, ahead), 1)
	b := s.launchSpec(spec, caps)
	if b.Name != names[0] {
		s.t.Errorf("%s runs, prepared: %v", b.Name, names)
	}
	s.arrivals.listen(s.t, proxyVictim, netns.ProxyPath(s.e.dir(b.Name)))
	return b
}

// launchWork is launch with a workspace.
func (s *escapeSuite) launchWork(runtimeName string, caps []string) *Bottle {
	s.t.Helper()
	spec := testSpec(s.t, escapeManifest)
	spec.ManifestPath = filepath.Join(spec.Caller.WorkDir, "bottle.yaml")
	spec.Runtime, spec.Cwd, spec.Caller.WorkDir = runtimeName, true, s.work
	b := s.launchSpec(spec, caps)
	s.t.Cleanup(func() {
		if err := errors.Join(s.e.Remove(context.WithoutCancel(s.t.Context()), b.Name), discard(s.e, b.Name)); err != nil {
			s.t.Error(err)
		}
	})
	return b
}

func (s *escapeSuite) launchSpec(spec plan.Spec, caps []string) *Bottle {
	s.t.Helper()
	e := *s.e
	setHooks(&e, testHooks{addCaps: caps})
	b, err := e.Launch(s.t.Context(), prepare(s.t, &e, spec))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { remove(s.t, b) })
	return b
}

// egressAddress returns a proxy's address on the egress network.
func (s *escapeSuite) egressAddress(name string) string {
	s.t.Helper()
	var found string
	err := netns.Do(netns.ProxyPath(s.e.dir(name)), func() error {
		nic, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		addrs, err := nic.Addrs()
		if err != nil || len(addrs) != 1 {
			return fmt.Errorf("addresses %v, %w", addrs, err)
		}
		found = netip.MustParsePrefix(addrs[0].String()).Addr().String()
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return found
}

// linkLocal returns the host's IPv6 link-local address on its uplink.
func (s *escapeSuite) linkLocal() string {
	s.t.Helper()
	nic, err := net.InterfaceByName("uplink")
	if err != nil {
		s.t.Fatal(err)
	}
	addrs, err := nic.Addrs()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, a := range addrs {
		if p := netip.MustParsePrefix(a.String()); p.Addr().IsLinkLocalUnicast() {
			return p.Addr().String()
		}
	}
	s.t.Fatal("the host has no IPv6 link-local address")
	return ""
}

// place returns the targets of attempts from inside a bottle, or from the host.
func (s *escapeSuite) place(name string, onHost bool) place {
	s.t.Helper()
	ns, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		s.t.Fatal(err)
	}
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		s.t.Fatal(err)
	}
	p := place{
		link: "eth0", hostLL: s.linkLocal(), proxy: s.egressAddress(name), other: s.egressAddress(s.other.Name),
		pid: strconv.Itoa(os.Getpid()), comm: strings.TrimSpace(string(comm)), netns: ns, guestFile: "/.bottle/init",
		work: plan.DefaultCwdTarget, onHost: onHost,
	}
	if onHost {
		p.link, p.guestFile, p.work = "uplink", filepath.Join(s.t.TempDir(), "written"), s.work
	}
	return p
}

// probeResult is the result of an attempt as reported by the prober.
type probeResult struct {
	Name, Detail string
	Reached      bool
	Rounds       int
	Gap          int64 // milliseconds
}

// batchOf returns the prober's input. With a results file, the prober repeats the
// attempts until it is stopped.
func batchOf(list []escape, proxy, resultsFile string) []byte {
	type attempt struct {
		Name, Kind string
		Args       []string
		Exclusive  bool
		Interval   int64
	}
	var attempts []attempt
	for _, e := range list {
		attempts = append(attempts, attempt{e.name, e.kind, e.args, e.exclusive, e.interval().Milliseconds()})
	}
	data, err := json.Marshal(map[string]any{"proxy": proxy, "attempts": attempts, "results_file": resultsFile})
	if err != nil {
		panic(err) // strings and numbers only
	}
	return data
}

// inside makes attempts in a bottle, in one batch.
func (s *escapeSuite) inside(name, proxy string, list []escape) []probeResult {
	s.t.Helper()
	out, err := s.probeIn(name, batchOf(list, proxy, ""))
	if err != nil {
		s.t.Error(err)
		return nil
	}
	return s.results(out, len(list))
}

// probeIn runs the prober in a bottle and returns its output.
func (s *escapeSuite) probeIn(name string, stdin []byte, args ...string) ([]byte, error) {
	var out, errs bytes.Buffer
	session, err := s.e.Exec(context.WithoutCancel(s.t.Context()), name, session.Config{
		Command: append([]string{"/probe"}, args...), Stdin: bytes.NewReader(stdin), Stdout: &out, Stderr: &errs,
	})
	if err != nil {
		return nil, err
	}
	code, err := session.Wait()
	if err == nil && code != 0 {
		err = fmt.Errorf("exit %d", code)
	}
	if err != nil {
		return nil, fmt.Errorf("the prober in %s: %w: %s%s", name, err, &out, &errs)
	}
	return out.Bytes(), nil
}

// outside makes an attempt on the host. A command prefix may enter a namespace.
func (s *escapeSuite) outside(proxy string, one escape, prefix ...string) probeResult {
	s.t.Helper()
	args := slices.Concat(prefix, []string{s.probe})
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = bytes.NewReader(batchOf([]escape{one}, proxy, ""))
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("run the prober on the host: %v", err)
	}
	if r := s.results(out, 1); len(r) == 1 {
		return r[0]
	}
	return probeResult{}
}

func (s *escapeSuite) results(data []byte, n int) []probeResult {
	s.t.Helper()
	out, err := readResults(data, n)
	if err != nil {
		s.t.Error(err)
	}
	return out
}

// readResults parses the prober's output, which must contain n results.
func readResults(data []byte, n int) ([]probeResult, error) {
	var out []probeResult
	if err := json.Unmarshal(data, &out); err != nil {
		return nil, fmt.Errorf("parse the prober's results: %w in %q", err, data)
	}
	if len(out) != n {
		return nil, fmt.Errorf("got %d results from the prober, want %d: %q", len(out), n, data)
	}
	return out, nil
}

// isICMPError reports whether an event is an ICMP error about a packet that the
// world sent.
func isICMPError(e labtest.WorldEvent) bool { return e.Proto == "icmp" && e.Type == "unreachable" }

// matchesVictim reports whether an event of the world shows the success of an
// attempt.
func matchesVictim(victim string, e labtest.WorldEvent) bool {
	if name, ok := strings.CutPrefix(victim, worldQuery); ok {
		return e.Event == "query" && e.Name == name
	}
	if what, ok := strings.CutPrefix(victim, worldRequest); ok {
		site, path, _ := strings.Cut(what, "/")
		host, byHost := strings.CutPrefix(site, "Host ")
		return e.Event == "request" && e.Path == "/"+path && (!byHost || e.Host == host)
	}
	addr, ok := strings.CutPrefix(victim, worldVictim)
	return ok && e.Local == addr && !isICMPError(e)
}
