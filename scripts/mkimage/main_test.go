package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	imagearchive "github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/plugins/content/local"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// must fails the test if a step of its setup fails.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// makeTree creates a directory with a file of every kind. It sets their times,
// which are part of the image.
func makeTree(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	at := func(name string) string { return filepath.Join(root, name) }
	must(t, os.MkdirAll(at("usr/bin"), 0o755))
	must(t, os.Mkdir(at("tmp"), 0o755))
	must(t, os.Chmod(at("tmp"), fs.ModeSticky|0o777))
	must(t, os.WriteFile(at("usr/bin/su"), []byte("a program"), 0o755))
	must(t, os.Chown(at("usr/bin/su"), 0, 42))
	must(t, os.Chmod(at("usr/bin/su"), fs.ModeSetuid|fs.ModeSetgid|0o755))
	must(t, os.Link(at("usr/bin/su"), at("usr/bin/zz-again")))
	must(t, os.Symlink("../no/such/place", at("usr/link")))
	must(t, os.WriteFile(at("empty"), nil, 0o600))
	must(t, os.WriteFile(at("owned"), bytes.Repeat([]byte("x"), 3<<20), 0o640))
	must(t, os.Chown(at("owned"), 1234567, 7654321))
	must(t, os.WriteFile(at(strings.Repeat("long", 40)), []byte("n"), 0o644))
	must(t, os.WriteFile(at("capable"), []byte("p"), 0o755))
	must(t, unix.Setxattr(at("capable"), "security.capability", capabilityNetRaw, 0))
	must(t, unix.Mkfifo(at("pipe"), 0o622))
	must(t, os.Chmod(at("pipe"), 0o622)) // regardless of the umask
	must(t, unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		old := unix.NsecToTimeval(time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC).UnixNano())
		return errors.Join(err, unix.Lutimes(path, []unix.Timeval{old, old}))
	}))
	return root
}

// capabilityNetRaw is a VFS_CAP_REVISION_2 attribute, linux/capability.h.
var capabilityNetRaw = []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

func makeTar(t *testing.T, zipped bool, names ...string) string {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range names {
		must(t, w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(name))}))
		_, err := w.Write([]byte(name))
		must(t, err)
	}
	must(t, w.Close())
	path := filepath.Join(t.TempDir(), "layer")
	if zipped {
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		_, err := z.Write(out.Bytes())
		must(t, err)
		must(t, z.Close())
		out = packed
	}
	must(t, os.WriteFile(path, out.Bytes(), 0o644))
	return path
}

// runMkimage returns the exit code and the output on standard error.
func runMkimage(args ...string) (int, string) {
	var errs bytes.Buffer
	code := run(args, &errs, &errs)
	return code, errs.String()
}

// load imports the archive with containerd's importer.
func load(t *testing.T, path string) (content.Store, ocispec.Descriptor) {
	t.Helper()
	store, err := local.NewStore(t.TempDir())
	must(t, err)
	f, err := os.Open(path)
	must(t, err)
	defer func() { _ = f.Close() }()
	top, err := imagearchive.ImportIndex(t.Context(), store, f)
	must(t, err)
	data, err := content.ReadBlob(t.Context(), store, top)
	must(t, err)
	var index ocispec.Index
	must(t, json.Unmarshal(data, &index))
	if len(index.Manifests) != 1 {
		t.Fatalf("the index has %d manifests", len(index.Manifests))
	}
	return store, index.Manifests[0]
}

// unpack applies the image's layers to a new directory and returns it.
func unpack(t *testing.T, store content.Store, manifest ocispec.Manifest) string {
	t.Helper()
	root := t.TempDir()
	for _, l := range manifest.Layers {
		ra, err := store.ReaderAt(t.Context(), l)
		must(t, err)
		plain, err := compression.DecompressStream(content.NewReader(ra))
		must(t, err)
		_, err = archive.Apply(context.Background(), root, plain)
		must(t, errors.Join(err, plain.Close(), ra.Close()))
	}
	return root
}

func TestImage(t *testing.T) {
	out := filepath.Join(t.TempDir(), "image.tar")
	plain, zipped := makeTar(t, false, "from-tar", "both"), makeTar(t, true, "from-gzip", "both")
	code, errs := runMkimage("--out", out, "--ref", "docker.io/library/demo:v1", "--layer-tar", plain,
		"--layer-dir", makeTree(t), "--layer-tar", zipped, "--user", "1000:1000", "--workdir", "/w",
		"--env", "A=1", "--env", "B=x,y", "--label", "k=v=w", "--platform", "linux/arm64/v8", "--", "/bin/sh", "-c", "a b")
	if code != 0 {
		t.Fatalf("code %d: %s", code, errs)
	}
	if strings.Count(errs, "\n") != 1 || !strings.Contains(errs, "/null: device or socket") {
		t.Errorf("the notices are %q", errs)
	}
	store, desc := load(t, out)
	if desc.Annotations[images.AnnotationImageName] != "docker.io/library/demo:v1" || desc.Annotations[ocispec.AnnotationRefName] != "v1" {
		t.Errorf("the annotations are %v", desc.Annotations)
	}
	manifest, err := images.Manifest(t.Context(), store, desc, nil)
	must(t, err)
	checkConfig(t, store, manifest)
	checkTree(t, unpack(t, store, manifest))
	if entries, err := os.ReadDir(filepath.Dir(out)); err != nil || len(entries) != 1 {
		t.Errorf("unexpected files next to the image: %v, %v", entries, err)
	}
}

func checkConfig(t *testing.T, store content.Store, manifest ocispec.Manifest) {
	t.Helper()
	var types []string
	for _, l := range manifest.Layers {
		types = append(types, l.MediaType)
	}
	if !slices.Equal(types, []string{ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip}) {
		t.Errorf("the layers are %v", types)
	}
	data, err := content.ReadBlob(t.Context(), store, manifest.Config)
	must(t, err)
	var image ocispec.Image
	must(t, json.Unmarshal(data, &image))
	for i, l := range manifest.Layers {
		got, err := images.GetDiffID(t.Context(), store, l)
		must(t, err)
		if got != image.RootFS.DiffIDs[i] {
			t.Errorf("layer %d: diff ID is %s, want %s", i, image.RootFS.DiffIDs[i], got)
		}
	}
	c := image.Config
	if image.OS != "linux" || image.Architecture != "arm64" || image.Variant != "v8" || c.User != "1000:1000" || c.WorkingDir != "/w" ||
		!slices.Equal(c.Env, []string{"A=1", "B=x,y"}) || c.Labels["k"] != "v=w" || !slices.Equal(c.Cmd, []string{"/bin/sh", "-c", "a b"}) {
		t.Errorf("the configuration is %s", data)
	}
}

func checkTree(t *testing.T, root string) {
	t.Helper()
	for name, want := range map[string]struct {
		mode     fs.FileMode
		uid, gid uint32
		size     int64
	}{
		"tmp":                      {fs.ModeDir | fs.ModeSticky | 0o777, 0, 0, -1},
		"usr/bin/su":               {fs.ModeSetuid | fs.ModeSetgid | 0o755, 0, 42, 9},
		"usr/bin/zz-again":         {fs.ModeSetuid | fs.ModeSetgid | 0o755, 0, 42, 9},
		"owned":                    {0o640, 1234567, 7654321, 3 << 20},
		"empty":                    {0o600, 0, 0, 0},
		"pipe":                     {fs.ModeNamedPipe | 0o622, 0, 0, 0},
		strings.Repeat("long", 40): {0o644, 0, 0, 1},
		"from-tar":                 {0o644, 0, 0, 8},
		"from-gzip":                {0o644, 0, 0, 9},
	} {
		info, err := os.Lstat(filepath.Join(root, name))
		must(t, err)
		stat := info.Sys().(*syscall.Stat_t)
		if info.Mode() != want.mode || stat.Uid != want.uid || stat.Gid != want.gid || want.size >= 0 && info.Size() != want.size {
			t.Errorf("%s is %v %d:%d of %d bytes, want %+v", name, info.Mode(), stat.Uid, stat.Gid, info.Size(), want)
		}
	}
	one, err := os.Stat(filepath.Join(root, "usr/bin/su"))
	must(t, err)
	other, err := os.Stat(filepath.Join(root, "usr/bin/zz-again"))
	must(t, err)
	if !os.SameFile(one, other) {
		t.Error("the hard link became a separate file")
	}
	if got, err := os.Readlink(filepath.Join(root, "usr/link")); err != nil || got != "../no/such/place" {
		t.Errorf("the symbolic link points to %q, %v", got, err)
	}
	value := make([]byte, 64)
	n, err := unix.Lgetxattr(filepath.Join(root, "capable"), "security.capability", value)
	if err != nil || !bytes.Equal(value[:n], capabilityNetRaw) {
		t.Errorf("the capabilities are %x, %v", value[:max(n, 0)], err)
	}
	if _, err := os.Lstat(filepath.Join(root, "null")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the device was packed: %v", err)
	}
}

func TestReproducible(t *testing.T) {
	tree, layer := makeTree(t), makeTar(t, true, "a", "b")
	var first []byte
	for range 2 {
		out := filepath.Join(t.TempDir(), "image.tar")
		if code, errs := runMkimage("--out", out, "--ref", "docker.io/library/demo:v1", "--layer-dir", tree,
			"--layer-tar", layer, "--layer-dir", tree, "--label", "b=1", "--label", "a=1"); code != 0 {
			t.Fatalf("code %d: %s", code, errs)
		}
		data, err := os.ReadFile(out)
		must(t, err)
		if first != nil && !bytes.Equal(first, data) {
			t.Error("the second archive differs from the first")
		}
		first = data
	}
}

func TestInvalidInput(t *testing.T) {
	dir := t.TempDir()
	good := makeTar(t, false, "a")
	junk := filepath.Join(dir, "junk")
	must(t, os.WriteFile(junk, bytes.Repeat([]byte("no tar at all. "), 100), 0o644))
	zstd := filepath.Join(dir, "zstd")
	must(t, os.WriteFile(zstd, []byte("\x28\xb5\x2f\xfd more"), 0o644))
	short := filepath.Join(dir, "short")
	data, err := os.ReadFile(makeTar(t, true, "a"))
	must(t, err)
	must(t, os.WriteFile(short, data[:len(data)-6], 0o644))
	out, ref := []string{"--out", filepath.Join(dir, "out")}, []string{"--ref", "docker.io/library/x:1"}
	for _, c := range []struct {
		code int
		part string
		args []string
	}{
		{2, "missing --out", append(ref, "--layer-tar", good)},
		{2, "missing --ref", append(out, "--layer-tar", good)},
		{2, "missing --layer", slices.Concat(out, ref)},
		{2, "such as docker.io/library/x:latest", slices.Concat(out, []string{"--ref", "x", "--layer-tar", good})},
		{2, "such as docker.io/library/x:1", slices.Concat(out, []string{"--ref", "x:1", "--layer-tar", good})},
		{2, "--env A", slices.Concat(out, ref, []string{"--layer-tar", good, "--env", "A"})},
		{2, "--label =1", slices.Concat(out, ref, []string{"--layer-tar", good, "--label", "=1"})},
		{2, "--platform amd64", slices.Concat(out, ref, []string{"--layer-tar", good, "--platform", "amd64"})},
		{2, "after --", slices.Concat(out, ref, []string{"--layer-tar", good, "sh", "--", "-c"})},
		{2, "unknown flag", slices.Concat(out, ref, []string{"--layer-zip", good})},
		{1, "no such file", slices.Concat(out, ref, []string{"--layer-tar", filepath.Join(dir, "nothing")})},
		{1, "no such file", slices.Concat(out, ref, []string{"--layer-dir", filepath.Join(dir, "nothing")})},
		{1, "not a directory", slices.Concat(out, ref, []string{"--layer-dir", good})},
		{1, "invalid tar header", slices.Concat(out, ref, []string{"--layer-tar", junk})},
		{1, "zstd", slices.Concat(out, ref, []string{"--layer-tar", zstd})},
		{1, "unexpected EOF", slices.Concat(out, ref, []string{"--layer-tar", short})},
	} {
		code, errs := runMkimage(c.args...)
		if code != c.code || !strings.Contains(errs, c.part) {
			t.Errorf("%q: code %d, %q", c.args, code, errs)
		}
	}
	if entries, err := filepath.Glob(filepath.Join(dir, "*out*")); err != nil || len(entries) != 0 {
		t.Errorf("failed runs left files: %v, %v", entries, err)
	}
}
