package images_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/images"
)

// TestDeriveRemoved: removing the image frees its layer and snapshot.
func TestDeriveRemoved(t *testing.T) {
	f := newWorkDir(t)
	f.write("a", "one", 0o644)
	must(t, f.s.Unpack(f.ctx, f.d.Base))
	before := stored(f.ctx, t, f.c)
	f.derive()
	if now := listed(f.ctx, t, f.c); len(now) != len(before)+5 { // name, manifest, configuration, layer, snapshot
		t.Errorf("deriving added\n%s", difference(before, now))
	}
	must(t, f.s.Remove(f.ctx, f.d.Ref))
	sameStore(f.ctx, t, f.c, before, 0)
}

// onPacking makes the directory large enough to interrupt packing, and calls fn once
// when packing has begun.
func (f *workDir) onPacking(fn func()) {
	f.t.Helper()
	must(f.t, os.WriteFile(f.path("large"), random(f.t, 32<<20), 0o644))
	called := false
	f.d.Progress = func(p images.Progress) {
		if p.State == images.StateActive && !called {
			called = true
			fn()
		}
	}
}

// TestDeriveInterrupted: interrupted packing ends immediately and leaves the store
// unchanged.
func TestDeriveInterrupted(t *testing.T) {
	f := newWorkDir(t)
	must(t, f.s.Unpack(f.ctx, f.d.Base))
	before := stored(f.ctx, t, f.c)
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	f.onPacking(cancel)
	if _, err := f.s.Derive(ctx, f.d); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	sameStore(f.ctx, t, f.c, before, 5*time.Second)
	f.derive()
}

// Variables that pass a derivation to a child process.
const (
	killedRef  = "TEST_KILLED_REF"
	killedBase = "TEST_KILLED_BASE"
	killedDir  = "TEST_KILLED_DIR"
)

// TestDeriveKilled kills a process during packing. It leaves no mount, and only what
// its lease protects until the lease expires; the next derivation succeeds.
func TestDeriveKilled(t *testing.T) {
	if os.Getenv(killedRef) != "" {
		deriveUntilKilled(t)
		return
	}
	f := newWorkDir(t)
	must(t, f.s.Unpack(f.ctx, f.d.Base))
	before := stored(f.ctx, t, f.c)
	mounts := readMounts(t)
	f.onPacking(func() {})
	cmd := exec.Command(os.Args[0], "-test.run", "^TestDeriveKilled$", "-test.v")
	cmd.Env = append(os.Environ(), killedRef+"="+f.d.Ref, killedBase+"="+f.d.Base, killedDir+"="+f.d.Dir)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); cmd.ProcessState.Success() || !strings.Contains(out.String(), "packing") {
		t.Fatalf("the process was not killed during packing: %v\n%s", err, out.String())
	}
	if now := readMounts(t); !slices.Equal(mounts, now) {
		t.Errorf("mounts left: %s", difference(mounts, now))
	}
	collect(f.ctx, t, f.c) // keeps what the lease protects
	left := findLeases(f.ctx, t, f.c, "derive "+f.d.Ref)
	if f.derive(); f.listing() == nil {
		t.Error("no image was created after a killed derivation")
	}
	must(t, f.s.Remove(f.ctx, f.d.Ref))
	if now := listed(f.ctx, t, f.c); len(now) == len(before) {
		t.Error("the killed process left nothing: the test is not meaningful")
	}
	// Same as expiry.
	for _, l := range left {
		must(t, f.c.LeasesService().Delete(f.ctx, l))
	}
	collect(f.ctx, t, f.c)
	sameStore(f.ctx, t, f.c, before, 0)
}

func deriveUntilKilled(t *testing.T) {
	ctx, _, s := connect(t)
	_, err := s.Derive(ctx, images.Derivation{
		Ref: os.Getenv(killedRef), Base: os.Getenv(killedBase), Dir: os.Getenv(killedDir), Target: "/workspace",
		Owner: func(context.Context) (int, int, error) { return 1000, 1000, nil },
		Progress: func(p images.Progress) {
			if p.State == images.StateActive {
				_, _ = os.Stdout.WriteString("packing\n")
				must(t, unix.Kill(os.Getpid(), unix.SIGKILL))
			}
		},
	})
	t.Fatalf("the process was not killed: %v", err)
}

func readMounts(t *testing.T) []string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mounts")
	must(t, err)
	lines := strings.Split(string(data), "\n")
	slices.Sort(lines)
	return lines
}

// findLeases returns the leases with a purpose and checks their owner label and
// expiry.
func findLeases(ctx context.Context, t *testing.T, c *containerd.Client, purpose string) []leases.Lease {
	t.Helper()
	all, err := c.LeasesService().List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	found := slices.DeleteFunc(all, func(l leases.Lease) bool { return l.Labels["bottle.purpose"] != purpose })
	for _, l := range found {
		// Defined in containerd's docs/garbage-collection.md.
		expiry, err := time.Parse(time.RFC3339, l.Labels["containerd.io/gc.expire"])
		if left := time.Until(expiry); err != nil || left < 0 || left > time.Hour || l.Labels["bottle.owner"] != "bottle" {
			t.Errorf("%v expires in %s, %v", l, left, err)
		}
	}
	return found
}

// TestDeriveAttributes: user attributes and file capabilities are preserved in the
// snapshot and in the layer.
func TestDeriveAttributes(t *testing.T) {
	f := newWorkDir(t)
	// cap_net_bind_service=ep as written by setcap(8): struct vfs_cap_data in
	// linux/capability.h.
	capability := string([]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.write("dir/file", "text", 0o755)
	must(t, unix.Setxattr(f.path("dir/file"), "security.capability", []byte(capability), 0))
	must(t, unix.Setxattr(f.path("dir/file"), "user.of.file", []byte("binary\x00\n"), 0))
	must(t, unix.Setxattr(f.path("dir"), "user.of.dir", []byte(""), 0))
	must(t, unix.Setxattr(f.path("dir/file"), "trusted.of.host", []byte("not the image's"), 0))
	check := func(when string) {
		f.inside(func(root string) {
			for name, want := range map[string]string{"dir/file security.capability": capability, "dir/file user.of.file": "binary\x00\n", "dir user.of.dir": ""} {
				file, attribute, _ := strings.Cut(name, " ")
				value := make([]byte, 64)
				n, err := unix.Getxattr(filepath.Join(root, "workspace", file), attribute, value)
				if err != nil || string(value[:n]) != want {
					t.Errorf("%s: %s is %q, %v", when, name, value[:max(n, 0)], err)
				}
			}
			if _, err := unix.Getxattr(root+"/workspace/dir/file", "trusted.of.host", nil); !errors.Is(err, unix.ENODATA) {
				t.Errorf("%s: the host's attribute is present: %v", when, err)
			}
		})
	}
	f.derive()
	check("snapshot")
	f.unpackAgain()
	check("layer")
}

// TestDeriveGitElsewhere: a notice reports a worktree, whose repository is not
// included.
func TestDeriveGitElsewhere(t *testing.T) {
	f := newWorkDir(t)
	f.write(".git", "gitdir: /somewhere/else\n", 0o644)
	f.write("sub/.git", "gitdir: ../.git/modules/sub\n", 0o644)
	f.derive()
	if len(f.notices) != 1 || !strings.Contains(f.notices[0], "git will not work inside the bottle") {
		t.Errorf("notices %q", f.notices)
	}
}

// TestDeriveNativeSnapshotter: with a snapshotter without overlays, the files written
// through its mount replace the base's and equal the layer's content.
func TestDeriveNativeSnapshotter(t *testing.T) {
	f := newWorkDir(t)
	f.s = images.New(f.c, os.Getenv("CONTAINERD_NAMESPACE"), "native")
	layer := tarOf(t, "the base's", []tar.Header{
		{Typeflag: tar.TypeReg, Name: "file"}, {Typeflag: tar.TypeReg, Name: "srv/work/becomes-dir"},
		{Typeflag: tar.TypeReg, Name: "srv/work/dir/stays"}, {Typeflag: tar.TypeReg, Name: "srv/work/becomes-file/in"},
		{Typeflag: tar.TypeSymlink, Name: "srv/work/link", Linkname: "/file"},
	}...)
	f.d.Base += "-native"
	putLayer(f.ctx, t, f.c, f.d.Base, runtime.GOARCH, ocispec.MediaTypeImageLayer, layer, layer)
	f.d.Target = "/srv/work"
	for _, name := range []string{"becomes-dir/in", "dir/new", "becomes-file", "link"} {
		f.write(name, "the directory's", 0o640)
	}
	mounts := readMounts(t)
	f.derive()
	if now := readMounts(t); !slices.Equal(mounts, now) {
		t.Errorf("mounts: %s", difference(mounts, now))
	}
	list := func(snapshotter string) (texts []string) {
		viewOf(f.ctx, t, f.c, snapshotter, f.chain(), func(root string) {
			must(t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
				var st unix.Stat_t
				if err == nil {
					err = unix.Lstat(p, &st)
				}
				if err != nil || !d.Type().IsRegular() {
					return err
				}
				data, err := os.ReadFile(p)
				texts = append(texts, fmt.Sprintf("%s %o %d %s", strings.TrimPrefix(p, root), st.Mode, st.Uid, data))
				return err
			}))
		})
		return texts
	}
	want := []string{
		"/file 100644 0 the base's", "/srv/work/becomes-dir/in 100640 1000 the directory's", "/srv/work/becomes-file 100640 1000 the directory's",
		"/srv/work/dir/new 100640 1000 the directory's", "/srv/work/dir/stays 100644 0 the base's", "/srv/work/link 100640 1000 the directory's",
	}
	if got := list("native"); !slices.Equal(got, want) {
		t.Errorf("written through a mount:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	over := images.New(f.c, os.Getenv("CONTAINERD_NAMESPACE"), "")
	must(t, over.Unpack(f.ctx, f.d.Ref))
	if got := list(snapshotter); !slices.Equal(got, want) {
		t.Errorf("unpacked by containerd:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestDeriveOverBase: the same on an overlay, with parent directories that exist in
// the base.
func TestDeriveOverBase(t *testing.T) {
	f := newWorkDir(t)
	layer := tarOf(t, "the base's", []tar.Header{
		{Typeflag: tar.TypeDir, Name: "private", Uid: 7, Gid: 8}, {Typeflag: tar.TypeReg, Name: "private/work/stays"},
		{Typeflag: tar.TypeReg, Name: "private/work/becomes-dir"}, {Typeflag: tar.TypeSymlink, Name: "private/work/link", Linkname: "/private"},
	}...)
	f.d.Base += "-over"
	putLayer(f.ctx, t, f.c, f.d.Base, runtime.GOARCH, ocispec.MediaTypeImageLayer, layer, layer)
	f.d.Target = "/private/work"
	f.write("becomes-dir/in", "", 0o600)
	f.write("link/in", "", 0o600)
	f.derive()
	f.d.Target = "" // list everything
	want := f.listing()
	for _, line := range []string{
		"/private 40644 7:8", "/private/work 40755 1000:1001", "/private/work/stays 100644 0:0",
		"/private/work/becomes-dir/in 100600 1000:1001", "/private/work/link/in 100600 1000:1001",
	} {
		if !slices.Contains(want, line) {
			t.Errorf("no %q in\n%s", line, strings.Join(want, "\n"))
		}
	}
	f.unpackAgain()
	if got := f.listing(); !slices.Equal(got, want) {
		t.Errorf("containerd unpacks something else:\n%s", difference(want, got))
	}
}
