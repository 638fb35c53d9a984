package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/labtest/nstest"
)

// The test runs in a new network namespace with the world's addresses on lo, the
// world and the proxy. Each agent runs in another one with a link to the proxy
// only.
const (
	// agentVar marks a copy of the test that is an agent.
	agentVar = "DEMOAGENT_TEST_AGENT"
	// routeVar gives an agent a default route, which bottle does not.
	routeVar = "DEMOAGENT_TEST_ROUTE"
)

const (
	proxyAddress = "10.77.0.1"
	agentAddress = "10.77.0.2"
	agentLink    = "eth0"
)

var worldProgram string

func TestMain(m *testing.M) {
	if os.Getenv(agentVar) == "" {
		os.Exit(nstest.Run(func() int { return runTests(m) }))
	}
	if err := becomeAgent(); err != nil {
		fmt.Fprintln(os.Stderr, "set up the agent:", err)
		os.Exit(125)
	}
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "demoagent-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	worldProgram = filepath.Join(dir, "world")
	if err := setUpWorld(); err != nil {
		fmt.Fprintln(os.Stderr, "set up the test's network namespace:", err)
		return 1
	}
	return m.Run()
}

func setUpWorld() error {
	if out, err := exec.Command("go", "build", "-o", worldProgram, "../world").CombinedOutput(); err != nil {
		return fmt.Errorf("build the world: %w\n%s", err, out)
	}
	out, err := exec.Command(worldProgram, "addresses").Output()
	if err != nil {
		return fmt.Errorf("list the world's addresses: %w", err)
	}
	return nstest.AddAddresses("lo", strings.Fields(string(out))...)
}

// becomeAgent waits until the test has created the link.
func becomeAgent() error {
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	if err := nstest.AddAddresses(agentLink, agentAddress+"/30"); err != nil {
		return err
	}
	if os.Getenv(routeVar) == "" {
		return nil
	}
	return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(proxyAddress)})
}

// startWorld runs the world until the test ends and returns its state directory.
func startWorld(t *testing.T) string {
	t.Helper()
	state := t.TempDir()
	cmd := exec.CommandContext(t.Context(), worldProgram, "serve", "--state", state)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { <-ended }) //nolint:errcheck // terminated by the context
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		if _, err := os.Stat(filepath.Join(state, "ready")); err == nil {
			return state
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("the world exited before it was ready: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	t.Fatal("the world is not ready after 30 seconds")
	return ""
}

// startProxy runs bottle's built-in proxy at proxyAddress, which must be on one of
// the caller's links.
func startProxy(t *testing.T, allow ...string) {
	t.Helper()
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, dnsAddress)
	}}
	server, err := egress.New(egress.Config{Entries: egress.Entries{Allow: allow}, Resolver: resolver}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(proxyAddress, "8888"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("stop the proxy: %v", err)
		}
	})
}

// agent is a demoagent process in its own network namespace. It waits for finish
// before it sets up its link.
type agent struct {
	cmd   *exec.Cmd
	begin io.WriteCloser
	out   bytes.Buffer
}

// newAgent starts an agent and connects it to this namespace.
func newAgent(t *testing.T, state string, env []string, args ...string) *agent {
	t.Helper()
	a := &agent{cmd: exec.CommandContext(t.Context(), "/proc/self/exe", args...)}
	proxy := "http://" + proxyAddress + ":8888"
	a.cmd.Env = append([]string{agentVar + "=1", "SSL_CERT_FILE=" + filepath.Join(state, "ca.pem"),
		"HTTPS_PROXY=" + proxy, "HTTP_PROXY=" + proxy}, env...)
	a.cmd.Stdout, a.cmd.Stderr = &a.out, &a.out
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	var err error
	if a.begin, err = a.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: "internal0"})
	veth.PeerName, veth.PeerNamespace = agentLink, netlink.NsPid(a.cmd.Process.Pid)
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	if err := nstest.AddAddresses("internal0", proxyAddress+"/30"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The kernel removes the link with the agent's namespace, asynchronously.
		if err := netlink.LinkDel(veth); err != nil && !errors.Is(err, unix.ENODEV) {
			t.Error(err)
		}
	})
	return a
}

// finish lets the agent run and returns its exit code and output.
func (a *agent) finish(t *testing.T) (int, string) {
	t.Helper()
	if _, err := io.WriteString(a.begin, "\n"); err != nil {
		t.Fatal(err)
	}
	err := a.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return a.cmd.ProcessState.ExitCode(), a.out.String()
}
