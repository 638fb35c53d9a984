package images_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

func random(t *testing.T, size int) []byte {
	t.Helper()
	data := make([]byte, size)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	return data
}

// tarOf returns an archive of the entries. Regular files contain text.
func tarOf(t *testing.T, text string, entries ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range entries {
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(text))
		}
		must(t, w.WriteHeader(&h))
		if h.Typeflag == tar.TypeReg {
			_, err := w.Write([]byte(text))
			must(t, err)
		}
	}
	must(t, w.Close())
	return buf.Bytes()
}

// victims is a host directory next to a directory to unpack into.
type victims struct{ dir, root string }

const (
	untouched = "the host's own\n"
	written   = "written by a layer\n"
)

func newVictims(t *testing.T) victims {
	t.Helper()
	v := victims{dir: filepath.Join(t.TempDir(), "victims")}
	v.root = filepath.Join(v.dir, "root")
	must(t, os.MkdirAll(v.root, 0o755))
	must(t, os.WriteFile(v.file(), []byte(untouched), 0o644))
	return v
}

func (v victims) file() string { return filepath.Join(v.dir, "victim") }

func (v victims) text(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(v.file())
	must(t, err)
	return string(data)
}

// escape is a layer that tries to access a host file.
type escape struct {
	entries func(v victims) []tar.Header
	takes   bool // reads the host file; otherwise writes it
	inside  bool // accepted, and confined to the image's root
}

// up leads from any unpacking directory to the host's root.
const up = "../../../../../../../../../../../../.."

func regular(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }

func symlink(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}
}

func hardLink(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}
}

var escapes = map[string]escape{
	"../ in a name": {entries: func(v victims) []tar.Header { return []tar.Header{regular(up + v.file())} }},
	"../ in an absolute name": {entries: func(v victims) []tar.Header {
		return []tar.Header{regular("/" + up + v.file())}
	}},
	"absolute name": {entries: func(v victims) []tar.Header { return []tar.Header{regular(v.file())} }, inside: true},
	"through an absolute link": {entries: func(v victims) []tar.Header {
		return []tar.Header{symlink("link", v.dir), regular("link/victim")}
	}},
	"through ../ in a link": {entries: func(v victims) []tar.Header {
		return []tar.Header{symlink("link", up+v.dir), regular("link/victim")}
	}},
	"through one link and another": {entries: func(v victims) []tar.Header {
		return []tar.Header{symlink("second", "first/victims"), symlink("first", filepath.Dir(v.dir)), regular("second/victim")}
	}},
	"absolute hard link": {entries: func(v victims) []tar.Header { return []tar.Header{hardLink("hard", v.file())} }, takes: true},
	"../ in a hard link": {entries: func(v victims) []tar.Header { return []tar.Header{hardLink("hard", up+v.file())} }, takes: true},
	"hard link through a link": {entries: func(v victims) []tar.Header {
		return []tar.Header{symlink("link", v.dir), hardLink("hard", "link/victim")}
	}, takes: true},
}

func zstandard(t *testing.T, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	must(t, err)
	return w.EncodeAll(data, nil)
}

// TestEscapingLayer: layers that try to access a host file, pulled with each
// compression and already in the store, are refused. In the control, tar with
// --absolute-names unpacks each one and reaches the file.
func TestEscapingLayer(t *testing.T) {
	r := labtest.PlainRegistry(t)
	for name, e := range escapes {
		t.Run(name, func(t *testing.T) {
			leakcheck.Check(t)
			ctx, cl, s := connect(t)
			v := newVictims(t)
			layer := tarOf(t, written, e.entries(v)...)
			for mediaType, packed := range map[string][]byte{
				ocispec.MediaTypeImageLayer: layer, ocispec.MediaTypeImageLayerGzip: zipped(t, layer), ocispec.MediaTypeImageLayerZstd: zstandard(t, layer),
			} {
				p := publishLayer(ctx, t, cl, s, r, "escape:1", mediaType, layer, packed)
				before := stored(ctx, t, cl)
				_, err := s.Pull(ctx, p.ref, p.remote)
				e.check(ctx, t, cl, p, err)
				sameStore(ctx, t, cl, before, 0)
			}
			p := published{ref: "docker.io/library/bottle-escape:1"}
			p.chain = putLayer(ctx, t, cl, p.ref, runtime.GOARCH, ocispec.MediaTypeImageLayer, layer, layer)
			before := stored(ctx, t, cl)
			err := s.Unpack(ctx, p.ref)
			if !e.inside {
				sameStore(ctx, t, cl, before, 0)
			}
			e.check(ctx, t, cl, p, err)
			if got := v.text(t); got != untouched {
				t.Errorf("the host file contains %q", got)
			}
			v.control(t, layer, e.takes)
		})
	}
}

// check verifies that the image was refused, or that it exists with the entry inside
// its root; then it is removed.
func (e escape) check(ctx context.Context, t *testing.T, c *containerd.Client, p published, err error) {
	t.Helper()
	switch {
	case !e.inside:
		if !errors.Is(err, images.ErrLayer) || strings.Contains(err.Error(), "\n") {
			t.Errorf("not refused as an invalid layer: %v", err)
		}
		if _, err := c.SnapshotService(snapshotter).Stat(ctx, p.chain); err == nil {
			t.Error("the image was unpacked")
		}
	case err != nil:
		t.Errorf("refused: %v", err)
	default:
		checkInside(ctx, t, c, p)
		drop(ctx, t, c, p.ref)
	}
}

// TestBrokenLayer: layers that are not a complete tar but have correct digests.
func TestBrokenLayer(t *testing.T) {
	r := labtest.PlainRegistry(t)
	layer := tarOf(t, string(random(t, 1<<20)), regular("file"))
	const plain, gzipped = ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip
	for name, c := range map[string]struct {
		mediaType string
		packed    []byte
	}{
		"half a tar": {plain, layer[:len(layer)/2]}, "half a gzip": {gzipped, zipped(t, layer)[:1<<19]},
		"noise": {plain, random(t, 1<<16)}, "noise as gzip": {gzipped, random(t, 1<<16)},
		"gzipped noise":      {gzipped, zipped(t, random(t, 1<<16))},
		"unknown media type": {"application/vnd.example.layer", layer},
	} {
		t.Run(name, func(t *testing.T) {
			leakcheck.Check(t)
			ctx, cl, s := connect(t)
			p := publishLayer(ctx, t, cl, s, r, "broken:1", c.mediaType, layer, c.packed)
			expect := func(before []string, err error) {
				t.Helper()
				if !errors.Is(err, images.ErrLayer) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), digest.FromBytes(c.packed).String()) {
					t.Errorf("got %v", err)
				}
				sameStore(ctx, t, cl, before, 0)
			}
			before := stored(ctx, t, cl)
			_, err := s.Pull(ctx, p.ref, p.remote)
			expect(before, err)
			const ref = "docker.io/library/bottle-broken:1"
			putLayer(ctx, t, cl, ref, runtime.GOARCH, c.mediaType, layer, c.packed)
			before = stored(ctx, t, cl)
			expect(before, s.Unpack(ctx, ref))
		})
	}
}

// TestEscapingUpdate: when the new version of an image is refused, the name keeps the
// previous one.
func TestEscapingUpdate(t *testing.T) {
	r := labtest.PlainRegistry(t)
	leakcheck.Check(t)
	ctx, cl, s := connect(t)
	good := publish(ctx, t, cl, s, r, "update:1")
	pull := func() error { _, err := s.Pull(ctx, good.ref, good.remote); return err }
	must(t, pull())
	kept := "docker.io/library/bottle-update:kept"
	img, err := cl.ImageService().Get(ctx, good.ref)
	must(t, err)
	img.Name = kept
	_, err = cl.ImageService().Create(ctx, img)
	must(t, err)
	drop(ctx, t, cl, good.ref)
	layer := tarOf(t, written, regular("../x"))
	publishLayer(ctx, t, cl, s, r, "update:1", ocispec.MediaTypeImageLayer, layer, layer)
	img.Name = good.ref
	_, err = cl.ImageService().Create(ctx, img)
	must(t, err)
	before := stored(ctx, t, cl)
	if err := pull(); !errors.Is(err, images.ErrLayer) {
		t.Errorf("got %v", err)
	}
	sameStore(ctx, t, cl, before, 0)
	drop(ctx, t, cl, kept)
	drop(ctx, t, cl, good.ref)
}

// TestEscapingLayerArrivesLate: the escaping layer is missing when the rest of the
// image is checked, as with tools that discard compressed layers. It is checked when
// it arrives.
func TestEscapingLayerArrivesLate(t *testing.T) {
	r := labtest.PlainRegistry(t)
	leakcheck.Check(t)
	ctx, cl, s := connect(t)
	layer := tarOf(t, written, regular("../x"))
	const mediaType = ocispec.MediaTypeImageLayer
	p := publishLayer(ctx, t, cl, s, r, "late:1", mediaType, layer, layer)
	putLayer(ctx, t, cl, p.ref, runtime.GOARCH, mediaType, layer, layer)
	must(t, cl.ContentStore().Delete(ctx, digest.FromBytes(layer)))
	collect(ctx, t, cl) // the file, too
	if err := s.Unpack(ctx, p.ref); !errors.Is(err, images.ErrIncomplete) || strings.Contains(err.Error(), "\n") {
		t.Errorf("without the layer: %v", err)
	}
	if _, err := s.Pull(ctx, p.ref, p.remote); !errors.Is(err, images.ErrLayer) {
		t.Errorf("with the layer: %v", err)
	}
	collect(ctx, t, cl)
	if _, err := cl.SnapshotService(snapshotter).Stat(ctx, p.chain); err == nil {
		t.Error("the image was unpacked")
	}
}

// TestOrdinaryLayer: entries that resemble an escape, but are written by real builders
// and must be accepted.
func TestOrdinaryLayer(t *testing.T) {
	r := labtest.PlainRegistry(t)
	leakcheck.Check(t)
	ctx, cl, s := connect(t)
	layer := tarOf(t, written,
		regular("/etc/first"), hardLink("second", "/etc/first"), symlink("absolute", "/etc"), symlink("etc/up", "../../../run"),
		symlink("bin", "usr/bin"), regular("bin/program"), regular("a..b/..c"),
		symlink("once", "/etc"), tar.Header{Typeflag: tar.TypeDir, Name: "once/", Mode: 0o755}, regular("once/file"))
	p := publishLayer(ctx, t, cl, s, r, "ordinary:1", ocispec.MediaTypeImageLayer, layer, layer)
	if _, err := s.Pull(ctx, p.ref, p.remote); err != nil {
		t.Fatal(err)
	}
	view(ctx, t, cl, p.chain, func(root string) {
		for _, name := range []string{"etc/first", "second", "usr/bin/program", "a..b/..c", "once/file"} {
			if data, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(data) != written {
				t.Errorf("%s contains %q, %v", name, data, err)
			}
		}
	})
	drop(ctx, t, cl, p.ref)
}

// checkInside verifies that the layer's file is in the image and that the host's file
// is not.
func checkInside(ctx context.Context, t *testing.T, c *containerd.Client, p published) {
	t.Helper()
	found := false
	view(ctx, t, c, p.chain, func(root string) {
		must(t, filepath.WalkDir(root, func(name string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			data, err := os.ReadFile(name)
			found = found || string(data) == written
			if string(data) == untouched {
				t.Errorf("%s contains the host file", strings.TrimPrefix(name, root))
			}
			return err
		}))
	})
	if !found {
		t.Error("the layer's file is not in the image")
	}
}

// view calls fn with the root of a snapshot.
func view(ctx context.Context, t *testing.T, c *containerd.Client, chain string, fn func(root string)) {
	t.Helper()
	viewOf(ctx, t, c, snapshotter, chain, fn)
}

func viewOf(ctx context.Context, t *testing.T, c *containerd.Client, snapshotter, chain string, fn func(root string)) {
	t.Helper()
	ctx, done, err := c.WithLease(ctx) // protects the view from garbage collection
	if err != nil {
		t.Fatal(err)
	}
	defer func() { must(t, done(context.WithoutCancel(ctx))) }()
	sn, key := c.SnapshotService(snapshotter), fmt.Sprintf("view-%d", time.Now().UnixNano())
	mounts, err := sn.View(ctx, key, chain)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { must(t, sn.Remove(context.WithoutCancel(ctx), key)) }()
	must(t, mount.WithReadonlyTempMount(ctx, mounts, func(root string) error { fn(root); return nil }))
}

// control unpacks the layer with tar --absolute-names, which follows names and links
// out of the directory.
func (v victims) control(t *testing.T, layer []byte, takes bool) {
	t.Helper()
	cmd := exec.Command("tar", "--extract", "--absolute-names", "--directory", v.root)
	cmd.Stdin = bytes.NewReader(layer)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("control: %v: %s", err, out)
	}
	if !takes {
		if got := v.text(t); got != written {
			t.Errorf("control: the host file contains %q", got)
		}
		return
	}
	if data, err := os.ReadFile(filepath.Join(v.root, "hard")); err != nil || string(data) != untouched {
		t.Errorf("control: the link contains %q, %v", data, err)
	}
}
