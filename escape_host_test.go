package bottle

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/idna"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/runtime"
)

// sightings is what victims of the test's own have seen.
type sightings struct {
	mu   sync.Mutex
	seen map[string]int
}

func (s *sightings) add(victim string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[victim]++
}

func (s *sightings) count(victim string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[victim]
}

// victim listens at victimPort of every address in a namespace, on TCP and UDP.
// The empty path is the host's namespace. IPv6 is turned off in the others.
func (s *sightings) victim(t *testing.T, who, ns string) {
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
			go s.accept(who, l)
			c, err := net.ListenPacket("udp"+family, fmt.Sprintf(":%d", victimPort))
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = c.Close() })
			go s.receive(who, c)
		}
		return nil
	}
	do := open
	if ns != "" {
		do = func() error { return netns.Do(ns, open) }
	}
	if err := do(); err != nil {
		t.Fatalf("victim in the namespace of the %s: %v", who, err)
	}
}

func (s *sightings) accept(who string, l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s.add(who)
		_ = c.Close()
	}
}

func (s *sightings) receive(who string, c net.PacketConn) {
	buf := make([]byte, 512)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		s.add(who)
		_, _ = c.WriteTo(buf[:n], from) // there may be no way back
	}
}

// scenery is the test host with victims on it, another bottle, and a prober.
type scenery struct {
	t     *testing.T
	e     *Engine
	seen  *sightings
	probe string // the prober's program
	other *Bottle
	naive string // a proxy on the host that refuses nothing
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

func newScenery(t *testing.T) *scenery {
	t.Helper()
	s := &scenery{t: t, e: openEngine(t), seen: &sightings{seen: map[string]int{}}}
	s.probe = filepath.Join(t.TempDir(), "probe")
	s.image()
	s.seen.victim(t, hostVictim, "")
	for _, path := range []string{hostSocket, abstractSocket} {
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go s.seen.accept(hostVictim, l)
	}
	s.write(canary, canaryText)
	t.Cleanup(func() { _ = os.Remove(canary) })
	s.naive = serveNaive(t, "", "127.0.0.1:0")
	// The other bottle's agent is under runc, so that a victim can be put
	// beside it: gVisor takes a namespace's addresses to itself.
	s.other = s.launch(runtime.RuntimeRunc, nil)
	dir := s.e.dir(s.other.Name)
	s.seen.victim(t, otherVictim, netns.ProxyPath(dir))
	s.seen.victim(t, otherInside, netns.AgentPath(dir))
	return s
}

func (s *scenery) write(file, text string) {
	s.t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// image imports an image whose user is root and which holds the prober, and a
// symbolic link where bottle writes a file of its own.
func (s *scenery) image() {
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

func (s *scenery) command(name string, args ...string) string {
	s.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// launch makes a bottle whose agent is root, with capabilities beyond those
// that it would have.
func (s *scenery) launch(runtimeName string, caps []string) *Bottle {
	s.t.Helper()
	e := *s.e
	e.addCaps = caps
	spec := testSpec(s.t, escapeManifest)
	spec.Runtime = runtimeName
	b, err := e.Launch(s.t.Context(), prepare(s.t, &e, spec))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { remove(s.t, b) })
	return b
}

// egressAddress is a proxy's address on the egress network.
func (s *scenery) egressAddress(name string) string {
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

// linkLocal is the host's IPv6 link-local address on its uplink.
func (s *scenery) linkLocal() string {
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

// place is what attempts aim at from inside a bottle, or on the host.
func (s *scenery) place(name string, onHost bool) place {
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
		pid: strconv.Itoa(os.Getpid()), comm: strings.TrimSpace(string(comm)), netns: ns, guestFile: "/.bottle/init", onHost: onHost,
	}
	if onHost {
		p.link, p.guestFile = "uplink", filepath.Join(s.t.TempDir(), "written")
	}
	return p
}

// probeResult is the prober's own word on one attempt.
type probeResult struct {
	Name, Detail string
	Reached      bool
	Rounds       int
	Gap          int64 // milliseconds
}

// batchOf is what the prober reads. With a vigil's file the attempts go on until
// that is ended.
func batchOf(list []escape, proxy, vigil string) []byte {
	type attempt struct {
		Name, Kind string
		Args       []string
		Exclusive  bool
		Interval   int64
	}
	var attempts []attempt
	for _, e := range list {
		attempts = append(attempts, attempt{e.name, e.kind, e.args, e.alone, e.pace().Milliseconds()})
	}
	data, err := json.Marshal(map[string]any{"proxy": proxy, "attempts": attempts, "results_file": vigil})
	if err != nil {
		panic(err) // texts and numbers only
	}
	return data
}

// inside runs attempts in a bottle, all in one batch.
func (s *scenery) inside(name, proxy string, list []escape) []probeResult {
	s.t.Helper()
	out, err := s.probeIn(name, batchOf(list, proxy, ""))
	if err != nil {
		s.t.Error(err)
		return nil
	}
	return s.results(out, len(list))
}

// probeIn runs the prober in a bottle to its end, and returns what it wrote.
func (s *scenery) probeIn(name string, stdin []byte, args ...string) ([]byte, error) {
	var out, errs bytes.Buffer
	session, err := s.e.Exec(context.WithoutCancel(s.t.Context()), name, SessionConfig{
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

// outside runs one attempt where a command prefix leads: nowhere, or into a
// namespace.
func (s *scenery) outside(proxy string, one escape, prefix ...string) probeResult {
	s.t.Helper()
	args := slices.Concat(prefix, []string{s.probe})
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = bytes.NewReader(batchOf([]escape{one}, proxy, ""))
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("the prober outside: %v", err)
	}
	if r := s.results(out, 1); len(r) == 1 {
		return r[0]
	}
	return probeResult{}
}

func (s *scenery) results(data []byte, n int) []probeResult {
	s.t.Helper()
	out, err := readResults(data, n)
	if err != nil {
		s.t.Error(err)
	}
	return out
}

// readResults returns as many as were asked for, or none.
func readResults(data []byte, n int) ([]probeResult, error) {
	var out []probeResult
	if err := json.Unmarshal(data, &out); err != nil {
		return nil, fmt.Errorf("the prober's results: %w in %q", err, data)
	}
	if len(out) != n {
		return nil, fmt.Errorf("the prober's results: %d instead of %d in %q", len(out), n, data)
	}
	return out, nil
}

// isComplaint holds for an ICMP error about a packet of the world's own.
func isComplaint(e labtest.WorldEvent) bool { return e.Proto == "icmp" && e.Type == "unreachable" }

// seenBy tells whether an event of the world's is the success of an attempt.
func seenBy(victim string, e labtest.WorldEvent) bool {
	if name, ok := strings.CutPrefix(victim, worldQuestion); ok {
		return e.Event == "query" && e.Name == name
	}
	if what, ok := strings.CutPrefix(victim, worldRequest); ok {
		site, path, _ := strings.Cut(what, "/")
		host, byHost := strings.CutPrefix(site, "Host ")
		return e.Event == "request" && e.Path == "/"+path && (!byHost || e.Host == host)
	}
	addr, ok := strings.CutPrefix(victim, worldVictim)
	return ok && e.Local == addr && !isComplaint(e)
}

// serveNaive starts a proxy that is a proxy as one would write it who thinks of no attacker: it
// takes what it is told, in every way of writing it, and dials that.
func serveNaive(t *testing.T, ns, addr string) string {
	t.Helper()
	var l net.Listener
	listen := func() (err error) {
		l, err = net.Listen("tcp4", addr)
		return err
	}
	do := listen
	if ns != "" {
		do = func() error { return netns.Do(ns, listen) }
	}
	if err := do(); err != nil {
		t.Fatalf("a proxy that refuses nothing: %v", err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				in := bufio.NewReader(c)
				for naiveRequest(ns, c, in) == nil {
				}
			}()
		}
	}()
	return l.Addr().String()
}

func naiveRequest(ns string, c net.Conn, in *bufio.Reader) error {
	line, err := in.ReadString('\n')
	if err != nil {
		return err
	}
	var host string
	for {
		header, err := in.ReadString('\n')
		if err != nil {
			return err
		}
		if header == "\r\n" {
			break
		}
		if v, ok := strings.CutPrefix(header, "Host: "); ok {
			host = strings.TrimSpace(v)
		}
	}
	method, target, _ := strings.Cut(strings.TrimSpace(line), " ")
	target, _, _ = strings.Cut(target, " ")
	if method == http.MethodConnect {
		return naiveTunnel(ns, c, in, target)
	}
	return naiveForward(ns, c, target, host)
}

func naiveTunnel(ns string, c net.Conn, in io.Reader, target string) error {
	up, err := naiveDial(ns, target)
	if err != nil {
		_, _ = io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
		return err
	}
	defer func() { _ = up.Close() }()
	_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
	go func() {
		_, _ = io.Copy(up, in)
		_ = up.SetDeadline(time.Now().Add(100 * time.Millisecond))
	}()
	_, _ = io.Copy(c, up)
	return io.EOF
}

func naiveForward(ns string, c net.Conn, url, host string) error {
	authority, path, _ := strings.Cut(strings.TrimPrefix(url, "http://"), "/")
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		authority = authority[i+1:]
	}
	authority, _, _ = strings.Cut(authority, "\x00")
	up, err := naiveDial(ns, authority+":80")
	if err != nil {
		_, _ = io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
		return err
	}
	defer func() { _ = up.Close() }()
	_ = up.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := fmt.Fprintf(up, "GET /%s HTTP/1.1\r\nHost: %s\r\n\r\n", path, host); err != nil {
		return err
	}
	res, err := http.ReadResponse(bufio.NewReader(up), nil)
	if err != nil {
		return err
	}
	return errors.Join(res.Write(c), res.Body.Close())
}

// naiveDial reads a host as C's inet_aton and a browser would, cuts it at a NUL,
// and tries every address of a name.
func naiveDial(ns, target string) (net.Conn, error) {
	target, _, cut := strings.Cut(target, "\x00")
	if cut && !strings.Contains(target, ":") {
		target += ":443"
	}
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	if a, err := netip.ParseAddr(host); err == nil {
		addrs = []netip.Addr{a}
	} else if a, ok := inetAton(host); ok {
		addrs = []netip.Addr{a}
	} else {
		if ascii, err := idna.New(idna.MapForLookup()).ToASCII(host); err == nil {
			host = ascii
		}
		// A search is not wanted, and the resolver is reached from the host.
		if addrs, err = net.DefaultResolver.LookupNetIP(context.Background(), "ip", strings.TrimSuffix(host, ".")+"."); err != nil {
			return nil, err
		}
	}
	conn, err := net.Conn(nil), errors.New("no address")
	for _, a := range addrs {
		to := net.JoinHostPort(a.Unmap().String(), port)
		var next net.Conn
		if ns != "" {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			next, err = netns.DialIn(ctx, ns, "tcp", to)
			cancel()
		} else {
			next, err = net.DialTimeout("tcp", to, time.Second)
		}
		if err != nil {
			continue
		}
		if conn != nil {
			_ = conn.Close()
		}
		conn = next
	}
	if conn == nil {
		return nil, err
	}
	return conn, nil
}

// inetAton reads an address of one to four numbers, decimal, octal or
// hexadecimal, the last of which fills what is left.
func inetAton(s string) (netip.Addr, bool) {
	parts := strings.Split(s, ".")
	if len(parts) > 4 {
		return netip.Addr{}, false
	}
	var v uint64
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 0, 32)
		if err != nil {
			return netip.Addr{}, false
		}
		if i == len(parts)-1 {
			v |= n
		} else {
			v |= n << (8 * (3 - i))
		}
	}
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}), true
}
