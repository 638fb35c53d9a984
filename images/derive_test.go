package images_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// workDir is a working directory and the image derived from it.
type workDir struct {
	t       *testing.T
	ctx     context.Context
	c       *containerd.Client
	s       *images.Store
	d       images.Derivation
	notices []string
}

func newWorkDir(t *testing.T) *workDir {
	t.Helper()
	leakcheck.Check(t)
	ctx, c, s := connect(t)
	name := strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-"))
	f := &workDir{t: t, ctx: ctx, c: c, s: s, d: images.Derivation{
		Ref: "docker.io/library/bottle-" + name + ":cwd", Base: "docker.io/library/bottle-" + name + ":base",
		Dir: filepath.Join(t.TempDir(), "work"), Target: "/workspace",
		Owner: func(context.Context) (int, int, error) { return 1000, 1001, nil },
	}}
	f.d.Notice = func(text string) { f.notices = append(f.notices, text) }
	put(ctx, t, c, f.d.Base, runtime.GOARCH)
	t.Cleanup(func() {
		if _, err := f.c.ImageService().Get(context.WithoutCancel(ctx), f.d.Ref); err == nil {
			drop(context.WithoutCancel(ctx), t, c, f.d.Ref)
		}
	})
	must(t, os.Mkdir(f.d.Dir, 0o755))
	return f
}

func (f *workDir) path(name string) string { return filepath.Join(f.d.Dir, name) }

func (f *workDir) write(name, text string, mode fs.FileMode) {
	f.t.Helper()
	must(f.t, os.MkdirAll(filepath.Dir(f.path(name)), 0o755))
	must(f.t, os.WriteFile(f.path(name), []byte(text), mode))
	must(f.t, os.Chmod(f.path(name), mode))
}

// settle waits for the file system's clock to advance, so that the directory's last
// change is older than the clock's granularity.
func (f *workDir) settle() {
	f.t.Helper()
	probe := filepath.Join(filepath.Dir(f.d.Dir), "clock")
	var st unix.Stat_t
	must(f.t, unix.Stat(f.d.Dir, &st))
	for begin := time.Now(); time.Since(begin) < 150*time.Millisecond; {
		must(f.t, os.WriteFile(probe, nil, 0o600))
		time.Sleep(10 * time.Millisecond)
	}
}

func (f *workDir) derive() bool {
	f.t.Helper()
	created, err := f.s.Derive(f.ctx, f.d)
	if err != nil {
		f.t.Fatal(err)
	}
	return created
}

// inside calls fn with the derived image's root.
func (f *workDir) inside(fn func(root string)) {
	f.t.Helper()
	view(f.ctx, f.t, f.c, f.chain(), fn)
}

// chain returns the name of the derived image's snapshot.
func (f *workDir) chain() string {
	f.t.Helper()
	img, err := f.c.GetImage(f.ctx, f.d.Ref)
	if err != nil {
		f.t.Fatal(err)
	}
	ids, err := img.RootFS(f.ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	return identity.ChainID(ids).String()
}

// unpackAgain replaces the snapshot that was written during packing by one that
// containerd unpacks from the layer's blob.
func (f *workDir) unpackAgain() {
	f.t.Helper()
	must(f.t, f.c.SnapshotService(snapshotter).Remove(f.ctx, f.chain()))
	img, err := f.c.GetImage(f.ctx, f.d.Ref)
	must(f.t, err)
	must(f.t, img.Unpack(f.ctx, snapshotter))
}

// listing returns every path below the target directory with mode, owner and link
// target.
func (f *workDir) listing() []string {
	f.t.Helper()
	var out []string
	f.inside(func(root string) {
		must(f.t, filepath.WalkDir(root+f.d.Target, func(p string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			var st unix.Stat_t
			if err := unix.Lstat(p, &st); err != nil {
				return err
			}
			line := fmt.Sprintf("%s %o %d:%d", strings.TrimPrefix(p, root), st.Mode, st.Uid, st.Gid)
			if link, err := os.Readlink(p); err == nil {
				line += " -> " + link
			}
			out = append(out, line)
			return nil
		}))
	})
	return out
}

func TestDerive(t *testing.T) {
	f := newWorkDir(t)
	f.write(".git/HEAD", "ref: refs/heads/main\n", 0o644)
	f.write("run.sh", "#!/bin/sh\n", 0o755)
	f.write("deep/er/secret", "hunter2", 0o600)
	f.write("setuid", "", 0o4755)
	must(t, os.Chmod(f.path("setuid"), 0o755|fs.ModeSetuid))
	must(t, os.Symlink("../../outside", f.path("relative")))
	must(t, os.Symlink("/etc/passwd", f.path("absolute")))
	must(t, os.Link(f.path("run.sh"), f.path("second")))
	must(t, unix.Mkfifo(f.path("pipe"), 0o600))
	must(t, unix.Mknod(f.path("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	l, err := net.Listen("unix", f.path("sock"))
	must(t, err)
	defer func() { must(t, l.Close()) }()
	f.write(".wh.run.sh", "", 0o644)
	must(t, os.Chtimes(f.path("run.sh"), time.Time{}, time.Unix(1e9, 0)))
	before := tree(t, f.d.Dir)
	if !f.derive() {
		t.Error("no image was created")
	}
	if after := tree(t, f.d.Dir); !slices.Equal(before, after) {
		t.Errorf("the directory was modified:\n%q\n%q", before, after)
	}
	want := []string{
		"/workspace 40755 1000:1001", "/workspace/.git 40755 1000:1001", "/workspace/.git/HEAD 100644 1000:1001",
		"/workspace/absolute 120777 1000:1001 -> /etc/passwd", "/workspace/deep 40755 1000:1001",
		"/workspace/deep/er 40755 1000:1001", "/workspace/deep/er/secret 100600 1000:1001",
		"/workspace/pipe 10600 1000:1001", "/workspace/relative 120777 1000:1001 -> ../../outside",
		"/workspace/run.sh 100755 1000:1001", "/workspace/second 100755 1000:1001", "/workspace/setuid 104755 1000:1001",
	}
	if got := f.listing(); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	f.inside(func(root string) {
		a, err := os.Stat(root + "/workspace/run.sh")
		must(t, err)
		b, err := os.Stat(root + "/workspace/second")
		must(t, err)
		if !os.SameFile(a, b) || a.ModTime().Unix() != 1e9 {
			t.Error("the hard link or the modification time was lost")
		}
		if _, err := os.Stat(root + "/file"); err != nil {
			t.Errorf("file of the base: %v", err)
		}
	})
	slices.Sort(f.notices)
	if want := []string{
		".wh.run.sh is not included: it has the name of a layer's whiteout file",
		"null is not included: it is a device", "sock is not included: it is a socket",
	}; !slices.Equal(f.notices, want) {
		t.Errorf("notices %q", f.notices)
	}
	img, err := f.s.Lookup(f.ctx, f.d.Ref)
	if err != nil || img.Config.WorkingDir != "/workspace" {
		t.Errorf("%+v, %v", img, err)
	}
}

// tree lists a directory with the metadata that changes when it is modified.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	must(t, filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(p, &st)
		}
		out = append(out, fmt.Sprint(p, st.Mode, st.Size, st.Mtim, st.Ctim))
		return err
	}))
	return out
}

// TestDeriveBlob: the snapshot written during packing equals what containerd unpacks
// from the layer's blob.
func TestDeriveBlob(t *testing.T) {
	f := newWorkDir(t)
	f.write("a/b", "text", 0o640)
	must(t, os.Symlink("b", f.path("a/c")))
	must(t, unix.Setxattr(f.path("a/b"), "user.bottle", []byte("yes"), 0))
	f.derive()
	want := f.listing()
	f.unpackAgain()
	if got := f.listing(); !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	f.inside(func(root string) {
		value := make([]byte, 16)
		n, err := unix.Getxattr(root+"/workspace/a/b", "user.bottle", value)
		if err != nil || string(value[:n]) != "yes" {
			t.Errorf("attribute %q, %v", value, err)
		}
	})
}

// TestDeriveUnchanged: an image is created only after a change, and after every
// change.
func TestDeriveUnchanged(t *testing.T) {
	f := newWorkDir(t)
	f.write("a/file", "one", 0o644)
	f.settle()
	f.derive()
	if f.derive() {
		t.Error("an unchanged directory was packed again")
	}
	for name, change := range map[string]func(){
		"same size and time": func() {
			fi, err := os.Stat(f.path("a/file"))
			must(t, err)
			f.write("a/file", "two", 0o644)
			must(t, os.Chtimes(f.path("a/file"), fi.ModTime(), fi.ModTime()))
		},
		"mode":      func() { must(t, os.Chmod(f.path("a/file"), 0o600)) },
		"attribute": func() { must(t, unix.Setxattr(f.path("a/file"), "user.x", []byte("y"), 0)) },
		"new file":  func() { f.write("new", "", 0o644) },
		"target":    func() { f.d.Target = "/elsewhere" },
	} {
		change()
		f.settle()
		if !f.derive() {
			t.Errorf("%s: no image was created", name)
		}
		if f.derive() {
			t.Errorf("%s: created twice", name)
		}
	}
	f.inside(func(root string) {
		if data, err := os.ReadFile(root + "/elsewhere/a/file"); err != nil || string(data) != "two" {
			t.Errorf("%q, %v", data, err)
		}
	})
	// A change within the granularity of the file system's clock is not reused.
	f.write("fresh", "", 0o644)
	if f.derive(); !f.derive() {
		t.Error("a directory that has just changed is considered unchanged")
	}
}

// TestDeriveIgnore: both ignore files are applied; .dockerignore cannot exclude .git.
func TestDeriveIgnore(t *testing.T) {
	f := newWorkDir(t)
	for _, name := range []string{".git/config", "node_modules/x/y", "kept/in", "logs/a.log", "logs/keep.log", "secret/key", "secret/.env", "build/out/bin"} {
		f.write(name, "", 0o644)
	}
	f.write(".dockerignore", ".git\nnode_modules\n**/*.log\n!logs/keep.log\nbuild\n!build/out/bin\n", 0o644)
	f.write(".bottleignore", "# not the agent's\nsecret\n", 0o644)
	f.derive()
	var got []string
	for _, line := range f.listing() {
		got = append(got, strings.Fields(line)[0])
	}
	want := []string{"/workspace", "/workspace/.bottleignore", "/workspace/.dockerignore", "/workspace/.git", "/workspace/.git/config",
		"/workspace/build", "/workspace/build/out", "/workspace/build/out/bin", "/workspace/kept", "/workspace/kept/in", "/workspace/logs", "/workspace/logs/keep.log"}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	f.write(".bottleignore", ".git\n", 0o644)
	f.derive()
	if got := f.listing(); slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, ".git/") }) {
		t.Errorf(".bottleignore does not exclude .git: %q", got)
	}
	f.write(".dockerignore", "[", 0o644)
	if _, err := f.s.Derive(f.ctx, f.d); err == nil || !strings.Contains(err.Error(), ".dockerignore") {
		t.Errorf("invalid pattern: %v", err)
	}
}

// TestDeriveLinkOutside: links to a secret outside the directory do not copy it. The
// control reads the secret through the links.
func TestDeriveLinkOutside(t *testing.T) {
	f := newWorkDir(t)
	const secret = "the secret outside"
	outside := filepath.Join(filepath.Dir(f.d.Dir), "outside")
	must(t, os.Mkdir(outside, 0o755))
	must(t, os.WriteFile(filepath.Join(outside, "secret"), []byte(secret), 0o600))
	must(t, os.Symlink(outside, f.path("dir")))
	must(t, os.Symlink(filepath.Join(outside, "secret"), f.path("file")))
	must(t, os.Symlink("../outside/secret", f.path("relative")))
	must(t, os.Symlink("../outside/secret", f.path(".bottleignore-not")))
	for _, name := range []string{"dir/secret", "file", "relative"} {
		if data, err := os.ReadFile(f.path(name)); err != nil || string(data) != secret {
			t.Fatalf("control: %s: %q, %v", name, data, err)
		}
	}
	f.derive()
	f.inside(func(root string) {
		must(t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				data, rerr := os.ReadFile(p)
				if err = rerr; strings.Contains(string(data), secret) {
					t.Errorf("%s contains the secret", p)
				}
			}
			return err
		}))
	})
	must(t, os.Symlink("../outside/secret", f.path(".bottleignore")))
	if _, err := f.s.Derive(f.ctx, f.d); err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("patterns through a link: %v", err)
	}
}

func TestDeriveSparseAndLarge(t *testing.T) {
	f := newWorkDir(t)
	const size, at = 256 << 20, 100 << 20
	file, err := os.Create(f.path("sparse"))
	must(t, err)
	must(t, file.Truncate(size))
	_, err = file.WriteAt([]byte("middle"), at)
	must(t, err)
	must(t, file.Close())
	f.derive()
	f.inside(func(root string) {
		in, err := os.Open(root + "/workspace/sparse")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { must(t, in.Close()) }()
		var st unix.Stat_t
		must(t, unix.Fstat(int(in.Fd()), &st))
		got := make([]byte, 8)
		_, err = in.ReadAt(got, at-1)
		if err != nil || string(got) != "\x00middle\x00" || st.Size != size {
			t.Errorf("%q, size %d, %v", got, st.Size, err)
		}
		if used := st.Blocks * 512; used > size/8 {
			t.Errorf("the file uses %d bytes of disk space", used)
		}
	})
}

// TestDeriveReplaced: the previous image of the same name is removed completely.
func TestDeriveReplaced(t *testing.T) {
	f := newWorkDir(t)
	must(t, f.s.Unpack(f.ctx, f.d.Base))
	before := stored(f.ctx, t, f.c)
	f.write("a", "one", 0o644)
	f.derive()
	f.write("a", "two", 0o644)
	f.derive()
	const parts = 5 // per image: name, manifest, configuration, layer, snapshot
	for deadline := time.Now().Add(10 * time.Second); len(listed(f.ctx, t, f.c)) > len(before)+parts && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond) // containerd collects asynchronously
	}
	if now := listed(f.ctx, t, f.c); len(now) != len(before)+parts {
		t.Errorf("deriving twice added\n%s", difference(before, now))
	}
}

func TestDeriveErrors(t *testing.T) {
	f := newWorkDir(t)
	base := f.d.Base
	f.d.Base = "docker.io/library/none:1"
	if _, err := f.s.Derive(f.ctx, f.d); !errors.Is(err, images.ErrMissing) {
		t.Errorf("no base: %v", err)
	}
	f.d.Base = base
	f.d.Owner = func(context.Context) (int, int, error) { return 0, 0, images.ErrNotFound }
	if _, err := f.s.Derive(f.ctx, f.d); !errors.Is(err, images.ErrNotFound) {
		t.Errorf("no owner: %v", err)
	}
	f.d.Dir += "/none"
	if _, err := f.s.Derive(f.ctx, f.d); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), f.d.Dir) {
		t.Errorf("no directory: %v", err)
	}
}
