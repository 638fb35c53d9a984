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
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/scripts/labtest"
	"github.com/bot-bottle/bottle/scripts/leakcheck"
)

func random(t *testing.T, size int) []byte {
	t.Helper()
	data := make([]byte, size)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	return data
}

// tarOf is an archive of these entries; regular ones hold text.
func tarOf(t *testing.T, text string, entries ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range entries {
		h.Mode = 0o644
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

// victims is a folder of the host's, beside a place to unpack at.
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

// TestPullEscapingLayer has layers that reach for a file of the host's, to write
// it or to take it in. As a control tar, told to believe the names, unpacks each
// and does so.
func TestPullEscapingLayer(t *testing.T) {
	r := labtest.PlainRegistry(t)
	const up = "../../../../../../../../../../../../.."
	for name, c := range map[string]struct {
		entries func(v victims) []tar.Header
		takes   bool // the host's file into the layer
		refused bool
	}{
		"../ in a name": {func(v victims) []tar.Header {
			return []tar.Header{{Typeflag: tar.TypeReg, Name: up + v.file()}}
		}, false, false},
		"absolute name": {func(v victims) []tar.Header {
			return []tar.Header{{Typeflag: tar.TypeReg, Name: v.file()}}
		}, false, false},
		"through an absolute link": {func(v victims) []tar.Header {
			return []tar.Header{{Typeflag: tar.TypeSymlink, Name: "link", Linkname: v.dir}, {Typeflag: tar.TypeReg, Name: "link/victim"}}
		}, false, false},
		"through ../ in a link": {func(v victims) []tar.Header {
			return []tar.Header{{Typeflag: tar.TypeSymlink, Name: "link", Linkname: up + v.dir}, {Typeflag: tar.TypeReg, Name: "link/victim"}}
		}, false, false},
		"absolute hard link": {func(v victims) []tar.Header {
			return []tar.Header{{Typeflag: tar.TypeLink, Name: "hard", Linkname: v.file()}}
		}, true, true},
		"../ in a hard link": {func(v victims) []tar.Header {
			return []tar.Header{{Typeflag: tar.TypeLink, Name: "hard", Linkname: up + v.file()}}
		}, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			leakcheck.Check(t)
			ctx, cl, s := connect(t)
			v := newVictims(t)
			layer := tarOf(t, written, c.entries(v)...)
			p := publishLayer(ctx, t, cl, s, r, "escape:1", ocispec.MediaTypeImageLayer, layer, layer)
			before := stored(ctx, t, cl)
			_, err := s.Pull(ctx, p.ref, p.remote)
			switch {
			case c.refused:
				if !errors.Is(err, images.ErrLayer) || strings.Contains(err.Error(), "\n") {
					t.Errorf("pulled: %v", err)
				}
				sameStore(ctx, t, cl, before, 0)
			case err != nil:
				t.Errorf("not pulled: %v", err)
			default:
				checkInside(ctx, t, cl, p)
				drop(ctx, t, cl, p.ref)
			}
			if got := v.text(t); got != untouched {
				t.Errorf("the host's file holds %q", got)
			}
			v.control(t, layer, c.takes)
		})
	}
}

// checkInside looks for what the layer wrote and for what it must not have
// taken in.
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
				t.Errorf("%s holds the host's file", strings.TrimPrefix(name, root))
			}
			return err
		}))
	})
	if !found {
		t.Error("what the layer wrote is nowhere in the image")
	}
}

// view calls fn with the root of a snapshot.
func view(ctx context.Context, t *testing.T, c *containerd.Client, chain string, fn func(root string)) {
	t.Helper()
	viewOf(ctx, t, c, snapshotter, chain, fn)
}

func viewOf(ctx context.Context, t *testing.T, c *containerd.Client, snapshotter, chain string, fn func(root string)) {
	t.Helper()
	ctx, done, err := c.WithLease(ctx) // or containerd collects the view
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

// control unpacks the layer with tar, which follows names and links where it is
// told to.
func (v victims) control(t *testing.T, layer []byte, takes bool) {
	t.Helper()
	cmd := exec.Command("tar", "--extract", "--absolute-names", "--directory", v.root)
	cmd.Stdin = bytes.NewReader(layer)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("control: %v: %s", err, out)
	}
	if !takes {
		if got := v.text(t); got != written {
			t.Errorf("control: the host's file holds %q", got)
		}
		return
	}
	if data, err := os.ReadFile(filepath.Join(v.root, "hard")); err != nil || string(data) != untouched {
		t.Errorf("control: the link holds %q, %v", data, err)
	}
}
