package main

import (
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestWeb(t *testing.T) {
	state := startWorld(t)
	client := newClient(t, state)
	for url, want := range map[string]string{
		"https://allowed.test/":                 "200 hello from allowed.test\n",
		"http://refused.test/":                  "200 hello from refused.test\n",
		"https://sub.wild.test/":                "200 hello from sub.wild.test\n",
		"https://wild.test/":                    "200 hello from wild.test\n",
		"https://private.test/":                 "200 hello from private.test\n",
		"http://meta.test/":                     "200 hello from meta.test\n",
		"http://169.254.169.254/":               "200 hello from meta.test\n",
		"https://198.51.101.10/":                "200 hello from allowed.test\n",
		"https://v6.test/":                      "200 hello from v6.test\n",
		"http://allowed.test/bytes?n=30":        "200 abcdefghijklmnopqrstuvwxyzabcd",
		"http://allowed.test/bytes?n=-1":        "400 invalid parameter n: not a number from 0 to 17179869184\n",
		"http://allowed.test/slow?ms=1&n=3":     "200 line 1\nline 2\nline 3\n",
		"http://allowed.test/redirect?to=/echo": "302 ",
		"http://allowed.test/nothing":           "404 404 page not found\n",
	} {
		status, body := fetch(t, client, newRequest(t, http.MethodGet, url, ""))
		if got := fmt.Sprint(status, " ", body); got != want {
			t.Errorf("%s: %q, want %q", url, got, want)
		}
	}
	status, body := fetch(t, client, newRequest(t, http.MethodPost, "https://allowed.test/echo", "request body"))
	if status != 200 || body != "request body" {
		t.Errorf("/echo: %d %q", status, body)
	}
	_, body = fetch(t, client, newRequest(t, http.MethodGet, "https://allowed.test/headers", ""))
	if !strings.Contains(body, `"host":"allowed.test"`) || !strings.Contains(body, `"User-Agent"`) {
		t.Errorf("/headers: %s", body)
	}
	waitEvent(t, state, "the request for /echo", func(e event) bool {
		return e.Event == "request" && e.Proto == "https" && e.Method == http.MethodPost && e.Host == "allowed.test" &&
			e.Path == "/echo" && e.SNI == "allowed.test" && e.Local == "198.51.101.10:443"
	})
}

// TestSlowStreams checks that a line arrives while the rest of the response, which
// takes longer than the client's timeout, is still to come.
func TestSlowStreams(t *testing.T) {
	state := startWorld(t)
	resp, err := newClient(t, state).Do(newRequest(t, http.MethodGet, "https://allowed.test/slow?ms=50&n=10000", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	first := make([]byte, len("line 1\n"))
	if _, err := io.ReadFull(resp.Body, first); err != nil || string(first) != "line 1\n" {
		t.Fatalf("%q, %v", first, err)
	}
}

func TestGit(t *testing.T) {
	state := startWorld(t)
	work := filepath.Join(t.TempDir(), "work")
	runGit := func(args ...string) string {
		t.Helper()
		settings := []string{"-c", "http.sslCAInfo=" + filepath.Join(state, "ca.pem")}
		for _, s := range gitSites {
			settings = append(settings, "-c", fmt.Sprintf("http.curloptResolve=%s:443:%s", s.name, s.addr))
		}
		cmd := exec.CommandContext(t.Context(), "git", append(settings, args...)...)
		cmd.Env = append(gitEnv(), "GIT_TERMINAL_PROMPT=0")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %q: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	runGit("clone", "--quiet", "https://git.allowed.test/demo.git", work)
	if got := runGit("-C", work, "rev-list", "--count", "main"); got != "3" {
		t.Errorf("the clone has %s commits", got)
	}
	// git sends more than 1 MiB (http.postBuffer) in chunks.
	large := make([]byte, 3<<20)
	if _, err := rand.Read(large); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(work, "large"), large, 0o644); err != nil {
		t.Fatal(err)
	}
	runGit("-C", work, "add", "large")
	runGit("-C", work, "commit", "--quiet", "--message", "Add a large file")
	runGit("-C", work, "push", "--quiet", "origin", "main")
	head := runGit("-C", work, "rev-parse", "HEAD")
	if got := runGit("ls-remote", "https://git.refused.test/demo.git", "main"); got != head+"\trefs/heads/main" {
		t.Errorf("after the push of %s the server has %s", head, got)
	}
	waitEvent(t, state, "the push", func(e event) bool {
		return e.Event == "request" && e.Proto == "git" && e.Host == "git.allowed.test" && e.Path == "/demo.git/git-receive-pack"
	})
}

func TestVictims(t *testing.T) {
	state := startWorld(t)
	for _, at := range []string{"198.51.101.66:22", "198.51.101.66:443", "10.99.0.10:9999", "169.254.169.254:8080", "[fd00:99::10]:22"} {
		conn, err := net.DialTimeout("tcp", at, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "secret for "+at); err != nil {
			t.Fatal(err)
		}
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		received, err := io.ReadAll(conn)
		if err != nil || string(received) != "victim "+at+"\n" {
			t.Errorf("banner of %s: %q, %v", at, received, err)
		}
		_ = conn.Close()
		waitEvent(t, state, "the connection to "+at, func(e event) bool { return e.Event == "accept" && e.Local == at })
		waitEvent(t, state, "the data sent to "+at, func(e event) bool {
			return e.Event == "data" && e.Local == at && e.Data == "secret for "+at && e.Bytes == len(e.Data)
		})
	}
	for _, at := range []string{"198.51.101.66:53", "10.99.0.10:9999", "8.8.8.8:53", "[2001:db8:77::66]:443"} {
		conn, err := net.DialTimeout("udp", at, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.WriteString(conn, "hello"); err != nil {
			t.Fatal(err)
		}
		received := make([]byte, 100)
		n, err := conn.Read(received)
		if err != nil || string(received[:n]) != "victim "+at+"\n" {
			t.Errorf("reply of udp %s: %q, %v", at, received[:n], err)
		}
		_ = conn.Close()
		waitEvent(t, state, "the datagram to "+at, func(e event) bool {
			return e.Event == "datagram" && e.Local == at && e.Data == "hello"
		})
	}
}

// TestWatchLinks checks that a packet with an unreachable source, which no server
// sees, is logged.
func TestWatchLinks(t *testing.T) {
	state := startWorld(t)
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: "outer"})
	veth.PeerName = "inner"
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netlink.LinkDel(veth); err != nil {
			t.Error(err)
		}
	}()
	for _, name := range []string{"outer", "inner"} {
		bringUp(t, name)
	}
	for _, name := range []string{"outer", "inner"} {
		waitCarrier(t, name)
	}
	outer, err := netlink.LinkByName("outer")
	if err != nil {
		t.Fatal(err)
	}
	send(t, outer.Attrs().Index, udpPacket())
	e := waitEvent(t, state, "the packet", func(e event) bool { return e.Event == "packet" && e.Proto == "udp" })
	if e.Remote != "10.77.0.2:1234" || e.Local != "203.0.113.9:5678" || e.Bytes != 28 {
		t.Errorf("unexpected log entry of the packet: %+v", e)
	}
}

func bringUp(t *testing.T, name string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		t.Fatal(err)
	}
}

// waitCarrier waits until the link can transmit, shortly after it was set up.
func waitCarrier(t *testing.T, name string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if l.Attrs().OperState == netlink.OperUp {
			return
		}
	}
	t.Fatalf("link %s has no carrier after 10 seconds", name)
}

// udpPacket is an empty datagram from 10.77.0.2:1234 to 203.0.113.9:5678. Neither
// address is assigned in the namespace.
func udpPacket() []byte {
	return []byte{0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0, 10, 77, 0, 2, 203, 0, 113, 9,
		0x04, 0xd2, 0x16, 0x2e, 0, 8, 0, 0}
}

func send(t *testing.T, link int, packet []byte) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	to := &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_IP), Ifindex: link, Halen: 6,
		Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
	if err := unix.Sendto(fd, packet, 0, to); err != nil {
		t.Fatal(err)
	}
}
