package runtime_test

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/runtime"
)

// What connectAndTell ends with.
const (
	connected = 10 + iota
	sawNoContainerd
	sawPermission
	sawOther
)

func connectAndTell(address string) int {
	cfg := config("/run")
	cfg.Address = address
	c, err := runtime.Connect(context.Background(), cfg)
	switch {
	case err == nil:
		_ = c.Close()
		return connected
	case errors.Is(err, runtime.ErrPermission) && !errors.Is(err, runtime.ErrNoContainerd):
		return sawPermission
	case errors.Is(err, runtime.ErrNoContainerd):
		return sawNoContainerd
	}
	return sawOther
}

func TestConnectWithoutContainerd(t *testing.T) {
	leakcheck.Check(t)
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	must(t, os.WriteFile(plain, nil, 0o600))
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	must(t, l.Close())
	for what, address := range map[string]string{
		"no file": filepath.Join(dir, "none"), "no folder": filepath.Join(dir, "no", "none"),
		"a plain file": plain, "a folder": dir, "a socket without a server": stale,
	} {
		begin := time.Now()
		refused(t, what, address)
		// A missing socket is told at once, not at a deadline.
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("%s: it took %v", what, took)
		}
	}
}

// TestConnectToSilence: something takes the connection, and is no containerd.
func TestConnectToSilence(t *testing.T) {
	leakcheck.Check(t)
	for what, serve := range map[string]func(net.Conn){
		"says nothing": func(net.Conn) {},
		"hangs up":     func(c net.Conn) { _ = c.Close() },
		"speaks another protocol": func(c net.Conn) {
			_, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"))
		},
	} {
		t.Run(what, func(t *testing.T) {
			address := filepath.Join(t.TempDir(), "sock")
			l, err := net.Listen("unix", address)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { must(t, l.Close()) }()
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					serve(conn)
				}
			}()
			begin := time.Now()
			refused(t, what, address)
			if took := time.Since(begin); took > 15*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

func refused(t *testing.T, what, address string) {
	t.Helper()
	cfg := config("/run")
	cfg.Address = address
	c, err := runtime.Connect(ctx(t), cfg)
	if err == nil {
		must(t, c.Close())
	}
	if !errors.Is(err, runtime.ErrNoContainerd) {
		t.Errorf("%s: %v", what, err)
	}
}

// TestConnectWithoutPermission asks as a user who is not root, in a process of
// its own.
func TestConnectWithoutPermission(t *testing.T) {
	leakcheck.Check(t)
	self := publicCopy(t)
	closed := t.TempDir() // 0700, so that what is in it cannot be seen either
	must(t, os.Chmod(closed, 0o700))
	for _, address := range []string{os.Getenv("CONTAINERD_ADDRESS"), filepath.Join(closed, "sock")} {
		if got := connectAs(t, self, 65534, address); got != sawPermission {
			t.Errorf("%s, as nobody: %d, want %d", address, got, sawPermission)
		}
	}
	// The way of asking is sound: root is let in.
	if got := connectAs(t, self, 0, os.Getenv("CONTAINERD_ADDRESS")); got != connected {
		t.Errorf("as root: %d, want %d", got, connected)
	}
}

func connectAs(t *testing.T, program string, uid uint32, address string) int {
	t.Helper()
	cmd := exec.CommandContext(ctx(t), program)
	cmd.Env = append(os.Environ(), connectEnv+"="+address)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("run %s: %v", program, err)
	}
	return exit.ExitCode()
}

// publicCopy is this binary where everybody can run it.
func publicCopy(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "bottle-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Chmod(dir, 0o755))
	data, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "connect")
	must(t, os.WriteFile(file, data, 0o755))
	must(t, os.Chmod(file, 0o755))
	return file
}
