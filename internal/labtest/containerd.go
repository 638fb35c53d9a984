package labtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"
)

// containerdStartTimeout bounds the wait for containerd to respond.
const containerdStartTimeout = 30 * time.Second

// settings matches the settings that must differ between the test host's
// containerd and a second one.
var settings = regexp.MustCompile(`(?m)^(root|state|address|socket_dir) = "([^"]*)"$`)

// SmallContainerd starts a second containerd on the test host with its store on
// a file system of the given size in bytes. It returns the path of its socket
// and the mount point of the file system.
func SmallContainerd(t testing.TB, size int64) (address, disk string) {
	t.Helper()
	return ContainerdOn(t, func(disk string) error {
		return unix.Mount("tmpfs", disk, "tmpfs", 0, fmt.Sprintf("size=%d", size))
	})
}

// ContainerdOn is SmallContainerd with its store on a file system that the given function
// mounts.
func ContainerdOn(t testing.TB, mount func(disk string) error) (address, disk string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "small-") // the paths of sockets must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	disk = filepath.Join(dir, "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := mount(disk); err != nil {
		t.Fatalf("mount the disk of a containerd: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, 0); err != nil {
			t.Errorf("unmount the disk of a containerd: %v", err)
		}
	})
	hostConfig, err := os.ReadFile(filepath.Join(os.Getenv("LAB_STATE"), "containerd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	config := settings.ReplaceAllFunc(hostConfig, func(line []byte) []byte {
		m := settings.FindSubmatch(line)
		parent := dir
		if string(m[1]) == "root" {
			parent = disk
		}
		return fmt.Appendf(nil, "%s = %q", m[1], filepath.Join(parent, filepath.Base(string(m[2]))))
	})
	file := filepath.Join(dir, "containerd.toml")
	writeFile(t, file, config)
	address = filepath.Join(dir, "containerd.sock")
	runContainerd(t, file, address)
	return address, disk
}

func runContainerd(t testing.TB, file, address string) {
	t.Helper()
	log, err := os.Create(file + ".log")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("containerd", "--config", file)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait() // the exit status after SIGTERM does not matter
		_ = log.Close()
		if text, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("the second containerd's log:\n%s", text)
		}
	})
	c, err := containerd.New(address, containerd.WithTimeout(containerdStartTimeout))
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), containerdStartTimeout)
		defer cancel()
		_, err = c.Version(ctx)
		_ = c.Close()
	}
	if err != nil {
		text, _ := os.ReadFile(log.Name())
		t.Fatalf("the second containerd does not respond: %v\n%s", err, text)
	}
}

// FreezeContainerd stops the test host's containerd with SIGSTOP until resume is called or
// the test ends.
func FreezeContainerd(t testing.TB) (resume func()) {
	t.Helper()
	text, err := os.ReadFile("/run/lab/containerd.pid")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resume = sync.OnceFunc(func() { _ = unix.Kill(pid, unix.SIGCONT) }) // its end fails other calls
	t.Cleanup(resume)
	return resume
}
