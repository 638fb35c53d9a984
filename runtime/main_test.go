package runtime_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/runtime"
)

// The tests run on the test host of scripts/lab. This binary is also the guest's
// PID 1, selected by its argv[0].
const (
	image     = "docker.io/library/claude-bottle:latest"
	guestInit = "/.bottle/init"

	// connectEnv makes the binary connect to the address in it and report the result
	// as its exit code.
	connectEnv = "BOTTLE_TEST_CONNECT"
)

// runtimes are all runtimes for an agent.
var runtimes = []string{runtime.RuntimeRunsc, runtime.RuntimeRunc}

// Lock the main thread to the main goroutine: Go cannot terminate the main thread,
// so netNS must not change its namespace.
func init() { goruntime.LockOSThread() }

func TestMain(m *testing.M) {
	if os.Args[0] == guestInit {
		os.Exit(guest(os.Args[1:]))
	}
	if len(os.Args) == 3 && os.Args[1] == "proxy-log" {
		os.Exit(proxyLogger(os.Args[2]))
	}
	if address := os.Getenv(connectEnv); address != "" {
		os.Exit(tryConnect(address))
	}
	if os.Getenv("LAB_STATE") == "" || os.Getenv("CONTAINERD_ADDRESS") == "" {
		fmt.Fprintln(os.Stderr, "these tests need the test host: "+
			"`scripts/lab up`, then `scripts/lab exec -- go test ./runtime`")
		os.Exit(1)
	}
	os.Exit(labtest.Main(m))
}

// guest is PID 1 of an agent ("init") or of a proxy ("proxy"), which reaps children
// until SIGTERM, or a session that checks something from inside.
func guest(args []string) int {
	if len(args) > 0 {
		switch args[0] {
		case "tmp":
			guestTmp()
			return 0
		case "fill":
			guestFill()
			return 0
		case "allocate":
			guestAllocate()
			return 0
		}
	}
	sig := make(chan os.Signal, 8)
	signal.Notify(sig, syscall.SIGCHLD, syscall.SIGTERM)
	if len(args) > 0 && args[0] == "proxy" {
		err := os.WriteFile("/written", nil, 0o600)
		fmt.Printf("uid %d, write: %v, env %s\n", os.Getuid(), err, os.Getenv("GREETING"))
	}
	for {
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if pid <= 0 && !errors.Is(err, syscall.EINTR) {
				break
			}
		}
		if <-sig == syscall.SIGTERM {
			return 128 + int(syscall.SIGTERM)
		}
	}
}

// connect returns a client with its own run directory.
func connect(t *testing.T) *runtime.Client {
	t.Helper()
	return connectWith(t, labtest.Program(t))
}

// connectWith is connect with another program as the shim.
func connectWith(t *testing.T, shim string) *runtime.Client {
	t.Helper()
	return connectConfig(t, func(cfg *runtime.Config) { cfg.Shim = shim })
}

// connectConfig is connect with a changed configuration.
func connectConfig(t *testing.T, change func(*runtime.Config)) *runtime.Client {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "bottle-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	cfg := config(dir)
	change(&cfg)
	c, err := runtime.Connect(ctx(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, c.Close()) })
	stateDirs.Store(c, cfg.StateDir)
	return c
}

// stateDirs contains the state directories of clients.
var stateDirs sync.Map

func config(runDir string) runtime.Config {
	return runtime.Config{
		Address: os.Getenv("CONTAINERD_ADDRESS"), Namespace: os.Getenv("CONTAINERD_NAMESPACE"), RunDir: runDir,
	}
}

// ctx returns a context with a timeout well below that of the test binary.
func ctx(t *testing.T) context.Context {
	t.Helper()
	c, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	t.Cleanup(cancel)
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// bottleDir creates the directory of a bottle. connect removes it after the test.
func bottleDir(t *testing.T, c *runtime.Client, name string) string {
	t.Helper()
	dir := c.Dir(name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// netNS creates a network namespace that has only a loopback interface, pinned in dir.
func netNS(t *testing.T, dir, name string) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		goruntime.LockOSThread() // never unlocked: the thread terminates with its namespace
		done <- pinNewNetNS(file)
	}()
	if err := <-done; err != nil {
		t.Fatalf("create network namespace: %v", err)
	}
	t.Cleanup(func() {
		must(t, unix.Unmount(file, unix.MNT_DETACH))
		must(t, os.Remove(file))
	})
	return file
}

func pinNewNetNS(file string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	return unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), file, "", unix.MS_BIND, "")
}

// agentConfig returns a minimal agent whose PID 1 is this binary.
func agentConfig(t *testing.T, c *runtime.Client, name, rt string) runtime.AgentConfig {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if state, _ := stateDirs.Load(c); state != nil && state != "" { // a claim creates the bottle's
		must(t, os.MkdirAll(filepath.Join(state.(string), name), 0o700))
	}
	return runtime.AgentConfig{
		Name: name, Runtime: rt, NetNS: netNS(t, bottleDir(t, c, name), "agent.netns"), Hostname: "guest",
		Init: []string{guestInit, "init"}, Mounts: []runtime.Mount{{Source: self, Target: guestInit}},
		Memory: 512 << 20, Pids: 200,
		Labels: map[string]string{runtime.LabelName: name, runtime.LabelRole: runtime.RoleAgent},
	}
}

// created creates an agent without starting it. It is removed after the test.
func created(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) *runtime.Task {
	t.Helper()
	return createdFrom(t, c, cfg, image)
}

func createdFrom(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig, image string) *runtime.Task {
	t.Helper()
	rootfs, err := c.PrepareRootFS(ctx(t), cfg.Name, image, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, c, cfg.Name) })
	task, err := c.CreateAgent(ctx(t), cfg, rootfs)
	if err != nil {
		t.Fatal(err)
	}
	return task
}

// started creates and starts an agent.
func started(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) *runtime.Task {
	t.Helper()
	return startedFrom(t, c, cfg, image)
}

func startedFrom(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig, image string) *runtime.Task {
	t.Helper()
	task := createdFrom(t, c, cfg, image)
	if err := task.Start(ctx(t)); err != nil {
		t.Fatal(err)
	}
	return task
}

func remove(t *testing.T, c *runtime.Client, id string) {
	t.Helper()
	if err := c.Remove(ctx(t), id); err != nil {
		t.Errorf("remove %s: %v", id, err)
	}
}

// result is the result of a session.
type result struct {
	code     int
	out, err string
	killed   bool
	limits   []*runtime.LimitError
}

// run runs a session to its end.
func run(t *testing.T, c *runtime.Client, name string, cfg runtime.SessionConfig) result {
	t.Helper()
	var out, errs bytes.Buffer
	if cfg.Stdout == nil {
		cfg.Stdout = &out
	}
	if !cfg.Terminal {
		cfg.Stderr = &errs
	}
	s, err := c.Exec(ctx(t), name, cfg)
	if err != nil {
		t.Fatalf("exec %q: %v", cfg.Args, err)
	}
	code, err := wait(t, s)
	if err != nil {
		t.Fatalf("exec %q: %v", cfg.Args, err)
	}
	return result{code, out.String(), errs.String(), s.Killed(), s.LimitsReached()}
}

// wait calls Wait and fails the test if it hangs.
func wait(t *testing.T, s *runtime.Session) (code int, err error) {
	t.Helper()
	done := make(chan struct{})
	go func() { code, err = s.Wait(); close(done) }()
	select {
	case <-done:
		return code, err
	case <-time.After(time.Minute):
		t.Fatal("Wait has not returned within a minute")
		return 0, nil
	}
}

// script runs a line of bash in the bottle, which must succeed, and returns its output.
func script(t *testing.T, c *runtime.Client, name, line string) string {
	t.Helper()
	r := run(t, c, name, runtime.SessionConfig{Args: []string{"bash", "-c", line}})
	if r.code != 0 {
		t.Fatalf("%s: exit code %d: %s%s", line, r.code, r.out, r.err)
	}
	return strings.TrimSpace(r.out)
}

// eventually polls until ok returns true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// forEachRuntime runs a test under each runtime, with an agent of its own and a leak
// check.
func forEachRuntime(t *testing.T, test func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig)) {
	t.Helper()
	for _, rt := range runtimes {
		t.Run(rt, func(t *testing.T) {
			leakcheck.Check(t)
			c := connectConfig(t, func(cfg *runtime.Config) { // as the engine does
				cfg.Shim, cfg.Runsc, cfg.StateDir = labtest.Program(t), labtest.Embedded(t, "runsc"), t.TempDir()
			})
			test(t, c, agentConfig(t, c, "claude-bottle-test-"+rt, rt))
		})
	}
}
