package runtime_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/runtime"
)

const tmpImage = "docker.io/library/tmp-test:latest"

// TestTmp: /tmp is part of the root file system, whatever the image has there.
func TestTmp(t *testing.T) {
	dir := func(name string, mode int64) labtest.Entry {
		return labtest.Entry{Header: tar.Header{Name: name, Mode: mode, Typeflag: tar.TypeDir}}
	}
	for _, tt := range []struct {
		name    string
		entries []labtest.Entry
		mode    string // of /tmp
	}{
		{"missing", nil, "1777"},
		{"empty", []labtest.Entry{dir("tmp/", 0o1777)}, "1777"},
		{"not empty", []labtest.Entry{dir("tmp/", 0o1777), dir("tmp/x", 0o755)}, "1777"},
		{"its own mode", []labtest.Entry{dir("tmp/", 0o755)}, "755"},
		{"symbolic link", []labtest.Entry{dir("var/", 0o755), dir("var/tmp/", 0o1777), {
			Header: tar.Header{Name: "tmp", Linkname: "var/tmp", Mode: 0o777, Typeflag: tar.TypeSymlink},
		}}, "1777"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
				unpackedImage(t, c, append(tt.entries, dir("etc/", 0o755)))
				startedFrom(t, c, cfg, tmpImage)
				r := run(t, c, cfg.Name, runtime.SessionConfig{Args: []string{guestInit, "tmp"}})
				if want := "mode " + tt.mode + ", same device: true, rename: <nil>, link: <nil>\n"; r.out != want {
					t.Errorf("got %q (%s), want %q", r.out, r.err, want)
				}
			})
		})
	}
}

// guestTmp checks /tmp from inside.
func guestTmp() {
	var tmp, root unix.Stat_t
	err := errors.Join(unix.Stat("/tmp", &tmp), unix.Stat("/", &root), os.WriteFile("/tmp/file", nil, 0o600))
	if err != nil {
		fmt.Println(err)
		return
	}
	rename := os.Rename("/tmp/file", "/etc/file")
	fmt.Printf("mode %o, same device: %v, rename: %v, link: %v\n",
		tmp.Mode&0o7777, tmp.Dev == root.Dev, rename, os.Link("/etc/file", "/tmp/linked"))
}

// unpackedImage creates the image tmpImage from entries. It is removed after the test.
func unpackedImage(t *testing.T, c *runtime.Client, entries []labtest.Entry) {
	t.Helper()
	labtest.PutEntries(t, tmpImage, ocispec.ImageConfig{}, entries)
	img, err := c.Containerd().GetImage(ctx(t), tmpImage)
	if err == nil {
		err = img.Unpack(ctx(t), "overlayfs")
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestTmpIsNotMemory: an agent can write more to /tmp than its memory limit. Under
// runsc the disk limit applies.
func TestTmpIsNotMemory(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		cfg.Memory, cfg.Disk = 192<<20, 384<<20
		started(t, c, cfg)
		for _, tt := range []struct {
			mib  int
			full bool
		}{{300, false}, {450, cfg.Runtime == runtime.RuntimeRunsc}} {
			r := run(t, c, cfg.Name, runtime.SessionConfig{
				Args: []string{"dd", "if=/dev/zero", "of=/tmp/file", "bs=1M", fmt.Sprintf("count=%d", tt.mib)},
			})
			if full := r.code == 1 && strings.Contains(r.err, "No space left on device"); full != tt.full || !full && r.code != 0 {
				t.Errorf("write %d MiB: %+v, want ENOSPC: %v", tt.mib, r, tt.full)
			}
		}
		if got := script(t, c, cfg.Name, "rm /tmp/file; echo running"); got != "running" {
			t.Errorf("after the writes: %q", got)
		}
	})
}

// TestTmpfsSizes: every tmpfs that an agent can write to has a size limit, which is
// enforced.
func TestTmpfsSizes(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		cfg.Tmpfs = []string{"/.bottle/run"}
		unpackedImage(t, c, []labtest.Entry{{Header: tar.Header{Name: "etc/", Mode: 0o755, Typeflag: tar.TypeDir}}})
		startedFrom(t, c, cfg, tmpImage)
		r := run(t, c, cfg.Name, runtime.SessionConfig{Args: []string{guestInit, "fill"}})
		seen := map[string]string{}
		for line := range strings.Lines(r.out) {
			mount, result, _ := strings.Cut(strings.TrimSpace(line), " ")
			seen[mount] = result
		}
		want := map[string]string{"/dev/shm": "64 MiB: no space left on device", "/.bottle/run": "32 MiB: no space left on device"}
		for mount, result := range want {
			if seen[mount] != result {
				t.Errorf("%s: %q, want %q", mount, seen[mount], result)
			}
		}
		for mount, result := range seen {
			if !strings.HasSuffix(result, "no space left on device") && !strings.HasSuffix(result, "read-only file system") {
				t.Errorf("%s: %s", mount, result)
			}
		}
	})
}

// guestFill writes to each mounted file system in memory until it fails, at most
// 80 MiB, and prints the result.
func guestFill() {
	data, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		fmt.Println(err)
	}
	for line := range bytes.Lines(data) {
		f := strings.Fields(string(line))
		switch f[2] {
		case "proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2", "overlay", "9p":
			continue
		case "dev": // gVisor's /dev: only root can write to it, up to the memory limit
			continue
		}
		if fi, err := os.Stat(f[1]); err == nil && !fi.IsDir() {
			continue
		}
		n, err := fill(f[1] + "/fill")
		fmt.Printf("%s %d MiB: %v\n", f[1], n>>20, errors.Unwrap(err))
		_ = os.Remove(f[1] + "/fill")
	}
}

func fill(name string) (n int, err error) {
	f, err := os.Create(name)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	block := make([]byte, 1<<20)
	for n < 80<<20 {
		k, err := f.Write(block)
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
