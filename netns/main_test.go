package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests run in a new network and mount namespace, which stand in for the host.
// The machine's own are never changed.
const (
	hostEnv = "BOTTLE_NETNS_TEST_HOST"
	runDir  = "/run/bottle"
)

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == recordPlugin {
		if err := recordCall(); err != nil {
			fmt.Println(err) // libcni reports what a plugin prints
			os.Exit(1)
		}
		os.Exit(0)
	}
	switch os.Getenv(hostEnv) {
	case "":
		os.Exit(inNewHost())
	case "attach":
		os.Exit(attachUntilKilled())
	}
	if err := setUpHost(); err != nil {
		fmt.Fprintln(os.Stderr, "set up the test host:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// inNewHost runs this test binary again in the new namespaces.
func inNewHost() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), hostEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "start the test host (requires root):", err)
		return 1
	}
	return 0
}

// setUpHost mounts a tmpfs on /run and creates the world outside the host.
func setUpHost() error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	if err := os.Mkdir(runDir, 0o700); err != nil {
		return err
	}
	return makeWorld()
}

// pluginDirs finds the CNI plugins that the tests run.
func pluginDirs(t testing.TB) []string {
	t.Helper()
	dirs := append(filepath.SplitList(os.Getenv("CNI_PATH")), filepath.SplitList(os.Getenv("PATH"))...)
	m := &Manager{cfg: Config{PluginDirs: dirs}}
	for _, p := range []string{"bridge", "host-local", "static"} {
		if _, ok := m.findPlugin(p); !ok {
			t.Fatalf("CNI plugin %s is in none of CNI_PATH and PATH", p)
		}
	}
	return dirs
}

func newManager(t testing.TB) *Manager {
	t.Helper()
	m, err := New(Config{RunDir: runDir, PluginDirs: pluginDirs(t)})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// makeBottleDir creates a bottle's directory, which is removed when the test ends.
func makeBottleDir(t testing.TB, name string) string {
	t.Helper()
	dir := filepath.Join(runDir, "test", name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeBottleDir(t, dir) })
	return dir
}

// removeBottleDir fails if the directory is not empty.
func removeBottleDir(t testing.TB, dir string) {
	t.Helper()
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("remove the bottle's directory: %v", err)
	}
	_ = os.Remove(filepath.Dir(dir)) // fails while another bottle exists
}

// newPair creates a complete network, which is removed when the test ends.
func newPair(t testing.TB, m *Manager, name string) *Pair {
	t.Helper()
	dir := makeBottleDir(t, name)
	t.Cleanup(func() {
		if err := m.Remove(context.Background(), dir); err != nil {
			t.Errorf("remove %s: %v", name, err)
		}
	})
	p, err := attach(ctx(t), m, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// attach creates a complete network as a launch does, attaching concurrently.
func attach(ctx context.Context, m *Manager, dir string, resolvers []netip.Addr) (*Pair, error) {
	p, err := m.Create(ctx, dir)
	if err != nil {
		return nil, err
	}
	internal := make(chan error, 1)
	go func() { internal <- p.AttachInternal(ctx) }()
	if err := errors.Join(p.AttachEgress(ctx, resolvers), <-internal); err != nil {
		return nil, err
	}
	return p, p.Verify(ctx)
}

func ctx(t testing.TB) context.Context {
	t.Helper()
	c, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return c
}
