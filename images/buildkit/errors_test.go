package buildkit

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/labtest"
)

// TestErrors: errors name the file and the line they refer to.
func TestErrors(t *testing.T) {
	for name, c := range map[string]struct {
		dockerfile string
		req        Request
		want       []string
	}{
		"unknown instruction": {"FROM scratch\n\nCOPPY a /\n", Request{}, []string{"Dockerfile:3: COPPY a /", "unknown instruction"}},
		"no arguments":        {"FROM scratch\nCOPY a\n", Request{}, []string{"Dockerfile:2: COPY a", "COPY requires"}},
		"empty":               {"", Request{}, []string{"Dockerfile cannot be empty"}},
		"open heredoc":        {"FROM scratch\nCOPY <<END /x\ntext\n", Request{}, []string{"Dockerfile:2", "unterminated heredoc"}},
		"failing step":        {"FROM bottle-demo:latest\nRUN true\nRUN exit 7\n", Request{}, []string{"Dockerfile:3: RUN exit 7", "exit code: 7"}},
		"missing file":        {"FROM scratch\nCOPY absent /\n", Request{}, []string{"Dockerfile:2: COPY absent /", "not found"}},
		"unknown stage":       {"FROM scratch\n", Request{Target: "dev"}, []string{"target stage", "dev"}},
		"missing secret":      {"FROM bottle-demo:latest\nRUN --mount=type=secret,id=s,required true\n", Request{}, []string{"Dockerfile:2", "secret s: not found"}},
		"no secret file":      {"FROM scratch\n", Request{Secrets: []Secret{{ID: "s", File: "/no/such"}}}, []string{"build secret s", "/no/such"}},
		"no registry":         {"FROM 127.0.0.1:1/absent:1\n", Request{}, []string{"Dockerfile:1: FROM 127.0.0.1:1/absent:1", "connection refused"}},
		"no dockerfile":       {"FROM scratch\n", Request{Dockerfile: "/no/Dockerfile"}, []string{"read Dockerfile", "/no/Dockerfile"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBuilder(t)
			b.write("Dockerfile", c.dockerfile)
			c.req.Names = []string{b.ref()}
			b.bad(c.req, c.want...)
			if _, err := b.c.GetImage(b.ctx, b.ref()); err == nil {
				t.Error("the image exists")
			}
		})
	}
}

func TestNoContainerd(t *testing.T) {
	cfg := Config{Address: filepath.Join(t.TempDir(), "none.sock"), Namespace: "n", StateDir: t.TempDir()}
	if _, err := Build(context.Background(), cfg, Request{}); !errors.Is(err, ErrNoContainerd) {
		t.Error(err)
	}
}

// TestCancel cancels a build during a step; the step does not continue.
func TestCancel(t *testing.T) {
	b := newBuilder(t)
	b.write("Dockerfile", "FROM bottle-demo:latest\nRUN echo begun && sleep 600\n")
	ctx, cancel := context.WithCancel(b.ctx)
	b.ctx = ctx
	time.AfterFunc(2*time.Second, cancel)
	start := time.Now()
	b.bad(Request{}, "canceled")
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("cancellation took %s", took)
	}
	b.ctx = context.WithoutCancel(ctx)
}

// TestNoSpace builds with the state on a file system that is too small, and then on
// the same one after enlarging it.
func TestNoSpace(t *testing.T) {
	b := newBuilder(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	good := b.cfg
	b.cfg.StateDir = dir
	b.write("Dockerfile", "FROM bottle-demo:latest\nRUN echo 1 >/tmp/1\nRUN echo 2 >/tmp/2\n")
	req := Request{Names: []string{b.ref()}}
	if _, err := b.build(req); !errors.Is(err, ErrNoSpace) {
		t.Errorf("%v is not ErrNoSpace", err)
	}
	small := b.cfg
	// The store keeps working, with another state and with the enlarged one.
	b.cfg = good
	b.good(req)
	b.cfg = small
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=16m"); err != nil {
		t.Fatal(err)
	}
	b.good(req)
	if _, files := b.read(b.ref(), "tmp/2"); files["tmp/2"] != "2\n" {
		t.Errorf("%q", files)
	}
	if _, err := Prune(b.ctx, small, true); err != nil {
		t.Error(err)
	}
	b.cfg = good
}

// TestEscapingBase builds on an image with a layer entry that escapes the image's
// root. The control is the same base without that entry.
func TestEscapingBase(t *testing.T) {
	file := func(name string) labtest.Entry {
		return labtest.Entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}}
	}
	for name, c := range map[string]struct {
		entries []labtest.Entry
		says    string
	}{
		"control":          {[]labtest.Entry{file("bin/x")}, ""},
		"../ in a name":    {[]labtest.Entry{file("bin/x"), file("../../escape")}, "../../escape"},
		"through a link":   {[]labtest.Entry{{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "/tmp"}}, file("link/escape")}, "link/escape"},
		"hard link to ../": {[]labtest.Entry{{Header: tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: "../x"}}}, "hard"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBuilder(t)
			labtest.PutEntries(t, "docker.io/library/bottle-escaping-base:latest", ocispec.ImageConfig{}, c.entries)
			b.write("Dockerfile", "FROM bottle-escaping-base:latest\nCOPY Dockerfile /\n")
			req := Request{Names: []string{b.ref()}}
			if c.says == "" {
				b.good(req)
				return
			}
			b.bad(req, "invalid image layer", "escapes the image's root", c.says, "Dockerfile:")
			if _, err := b.c.ImageService().Get(b.ctx, b.ref()); err == nil {
				t.Error("the image exists")
			}
		})
	}
}

// TestEscapingImport imports an image from a buildkitd with a layer entry that escapes
// the image's root: the name is removed. The control is the same image without that
// entry.
func TestEscapingImport(t *testing.T) {
	for name, refused := range map[string]bool{"bin/x": false, "../escape": true} {
		t.Run(name, func(t *testing.T) {
			b := newBuilder(t)
			const local = "docker.io/library/bottle-escaping-import:latest"
			labtest.PutEntries(t, local, ocispec.ImageConfig{}, []labtest.Entry{{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}}})
			sent, err := b.c.ImageService().Get(b.ctx, local)
			must(t, err)
			ref := "docker.io/library/bottle-escaping-import:sent"
			var oci bytes.Buffer
			must(t, b.c.Export(b.ctx, &oci, archive.WithManifest(sent.Target, ref)))
			err = b.cfg.complete().load(b.ctx, b.c, &oci, []string{ref})
			_, gerr := b.c.ImageService().Get(b.ctx, ref)
			if !refused {
				must(t, errors.Join(err, gerr))
				must(t, b.c.ImageService().Delete(b.ctx, ref, images.SynchronousDelete()))
				return
			}
			if err == nil || !strings.Contains(err.Error(), "escapes the image's root") || !strings.Contains(err.Error(), name) {
				t.Errorf("got %v", err)
			}
			if !errdefs.IsNotFound(gerr) {
				t.Errorf("image name: %v", gerr)
			}
		})
	}
}

// TestBuiltImageChecked: a built image is checked by the build, down to its base, so
// that its first run need not do so. An image that is refused does not take the name.
func TestBuiltImageChecked(t *testing.T) {
	b := newBuilder(t)
	const base = "docker.io/library/bottle-checked-base:latest"
	labtest.PutEntries(t, base, ocispec.ImageConfig{}, []labtest.Entry{{Header: tar.Header{Typeflag: tar.TypeReg, Name: "../escape", Mode: 0o644}}})
	b.write("Dockerfile", "FROM bottle-demo:latest\nCOPY Dockerfile /\n")
	req := Request{Names: []string{b.ref()}}
	b.good(req)
	good, err := b.c.ImageService().Get(b.ctx, b.ref())
	must(t, err)
	checked := 0
	must(t, images.Walk(b.ctx, images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		want := "1"
		switch {
		case images.IsConfigType(d.MediaType), images.IsIndexType(d.MediaType):
			want = ""
		case images.IsLayerType(d.MediaType):
			want = "1 " + d.MediaType
			checked++
		}
		info, err := b.c.ContentStore().Info(ctx, d.Digest)
		if got := info.Labels["bottle.checked"]; err != nil || got != want {
			t.Errorf("label of %s is %q, %v, want %q", d.MediaType, got, err, want)
		}
		return images.Children(ctx, b.c.ContentStore(), d)
	}), good.Target))
	if checked < 2 {
		t.Errorf("%d layers are labelled", checked)
	}

	// Nothing checks the base before the image is built.
	b.cfg.CheckLayer = func(context.Context, content.Store, ocispec.Descriptor) error { return nil }
	b.write("Dockerfile", "FROM bottle-checked-base:latest\nCOPY Dockerfile /\n")
	b.bad(req, "invalid image layer", "escapes the image's root", "../escape")
	if now, err := b.c.ImageService().Get(b.ctx, b.ref()); err != nil || now.Target.Digest != good.Target.Digest {
		t.Errorf("the name refers to %s, %v, want the previous image %s", now.Target.Digest, err, good.Target.Digest)
	}
	// Control: without the check of the result, the image takes the name.
	unpack := b.cfg.Unpack
	b.cfg.Unpack = func(context.Context, *containerd.Client, string) error { return nil }
	b.good(req)
	b.cfg.Unpack = unpack
}
