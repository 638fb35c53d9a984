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

// Exit codes of tryConnect.
const (
	exitConnected = 10 + iota
	exitNoContainerd
	exitPermission
	exitOther
)

func tryConnect(address string) int {
	cfg := config("/run")
	cfg.Address = address
	c, err := runtime.Connect(context.Background(), cfg)
	switch {
	case err == nil:
		_ = c.Close()
		return exitConnected
	case errors.Is(err, runtime.ErrPermission) && !errors.Is(err, runtime.ErrNoContainerd):
		return exitPermission
	case errors.Is(err, runtime.ErrNoContainerd):
		return exitNoContainerd
	}
	return exitOther
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
		"no file": filepath.Join(dir, "none"), "no directory": filepath.Join(dir, "no", "none"),
		"a plain file": plain, "a directory": dir, "a socket without a server": stale,
	} {
		begin := time.Now()
		wantNoContainerd(t, what, address)
		// A missing socket is reported immediately, not after a timeout.
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("%s: took %v", what, took)
		}
	}
}

// TestConnectToOtherServer connects to servers that are not containerd.
func TestConnectToOtherServer(t *testing.T) {
	leakcheck.Check(t)
	for what, serve := range map[string]func(net.Conn){
		"sends nothing": func(net.Conn) {},
		"closes":        func(c net.Conn) { _ = c.Close() },
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
			wantNoContainerd(t, what, address)
			if took := time.Since(begin); took > 15*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func wantNoContainerd(t *testing.T, what, address string) {
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

// TestConnectWithoutPermission connects as an unprivileged user, in a separate
// process.
func TestConnectWithoutPermission(t *testing.T) {
	leakcheck.Check(t)
	self := publicCopy(t)
	closed := t.TempDir() // 0700: its contents are not visible either
	must(t, os.Chmod(closed, 0o700))
	for _, address := range []string{os.Getenv("CONTAINERD_ADDRESS"), filepath.Join(closed, "sock")} {
		if got := connectAs(t, self, 65534, address); got != exitPermission {
			t.Errorf("%s, as nobody: %d, want %d", address, got, exitPermission)
		}
	}
	// Control: root can connect.
	if got := connectAs(t, self, 0, os.Getenv("CONTAINERD_ADDRESS")); got != exitConnected {
		t.Errorf("as root: %d, want %d", got, exitConnected)
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

// publicCopy copies this binary to a path that every user can execute.
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
