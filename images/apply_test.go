package images_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/scripts/leakcheck"
)

// changes is a layer of all that a layer can have, over the one that base is.
func changes(t *testing.T) (base, layer []byte) {
	t.Helper()
	then := time.Unix(1_700_000_000, 0)
	entries := func(list ...tar.Header) []byte {
		for i := range list {
			h := &list[i]
			h.ModTime = then.Add(time.Duration(i) * time.Hour)
			h.Uid, h.Gid = 1000+i, 2000+i
		}
		return tarOf(t, "text of a file", list...)
	}
	dir := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o750} }
	base = entries(dir("kept/"), regular("kept/file"), regular("gone"), dir("opaque/"), regular("opaque/old"),
		regular("becomes-folder"), dir("becomes-file/"), regular("becomes-file/x"), symlink("link", "kept"))
	layer = entries(dir("kept/"), regular("kept/new"), regular(".wh.gone"), dir("opaque/"), regular("opaque/.wh..wh..opq"),
		regular("opaque/new"), dir("becomes-folder/"), regular("becomes-folder/x"), regular("becomes-file"),
		hardLink("kept/second", "kept/new"), symlink("dangling", "/no/where"), regular("no/parents/given"), regular("link/below"),
		tar.Header{Typeflag: tar.TypeFifo, Name: "pipe"},
		tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3},
		tar.Header{Typeflag: tar.TypeReg, Name: "setuid", Mode: 0o4755},
		tar.Header{Typeflag: tar.TypeReg, Name: "attributes", PAXRecords: map[string]string{
			"SCHILY.xattr.user.colour": "green", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		}},
		regular(strings.Repeat("quite-a-long-name/", 8)+"name"))
	return base, layer
}

// TestApplier unpacks a layer of everything, in each form that layers have, as
// containerd does: the same files come of it, and the same digest.
func TestApplier(t *testing.T) {
	base, layer := changes(t)
	var packed bytes.Buffer
	w, err := zstd.NewWriter(&packed)
	must(t, err)
	_, err = w.Write(layer)
	must(t, err)
	must(t, w.Close())
	for _, sn := range []string{"overlayfs", "native"} {
		for mediaType, data := range map[string][]byte{
			ocispec.MediaTypeImageLayer: layer, ocispec.MediaTypeImageLayerGzip: zipped(t, layer), ocispec.MediaTypeImageLayerZstd: packed.Bytes(),
			"application/vnd.docker.image.rootfs.diff.tar.gzip": zipped(t, layer),
		} {
			t.Run(sn+" "+mediaType, func(t *testing.T) {
				leakcheck.Check(t)
				ctx, c, _ := connect(t)
				ctx, done, err := c.WithLease(ctx)
				must(t, err)
				t.Cleanup(func() { must(t, done(context.WithoutCancel(ctx))) })
				under := blob(ctx, t, c, ocispec.MediaTypeImageLayer, base)
				d := blob(ctx, t, c, mediaType, data)
				var got [2][]string
				for i, a := range []diff.Applier{c.DiffService(), images.NewApplier(c.ContentStore())} {
					parent := snapshot(ctx, t, c, sn, "", a, under)
					got[i] = shown(ctx, t, c, sn, snapshot(ctx, t, c, sn, parent, a, d))
				}
				if !slices.Equal(got[0], got[1]) {
					t.Errorf("containerd's - and bottle's +:\n%s", difference(got[0], got[1]))
				}
				if all := strings.Join(got[1], "\n"); !strings.Contains(all, "/no/parents/given ") || strings.Contains(all, "/gone ") {
					t.Errorf("it is not what the layer says:\n%s", all)
				}
			})
		}
	}
}

// snapshot applies a layer, whose tar's digest and size have to be told right, and
// returns the committed snapshot's name.
func snapshot(ctx context.Context, t *testing.T, c *containerd.Client, snapshotter, parent string, a diff.Applier, d ocispec.Descriptor) string {
	t.Helper()
	sn := c.SnapshotService(snapshotter)
	name := fmt.Sprintf("bottle-test-%d", time.Now().UnixNano())
	mounts, err := sn.Prepare(ctx, name+"-active", parent)
	must(t, err)
	got, err := a.Apply(ctx, d, mounts)
	must(t, err)
	base, layer := changes(t)
	plain := map[bool][]byte{true: base, false: layer}[parent == ""]
	if got.Digest != digest.FromBytes(plain) || got.Size != int64(len(plain)) || got.MediaType != ocispec.MediaTypeImageLayer {
		t.Errorf("told %+v", got)
	}
	must(t, sn.Commit(ctx, name, name+"-active"))
	t.Cleanup(func() { must(t, sn.Remove(context.WithoutCancel(ctx), name)) })
	return name
}

// shown is all that a snapshot holds, file by file.
func shown(ctx context.Context, t *testing.T, c *containerd.Client, snapshotter, name string) []string {
	t.Helper()
	var out []string
	inodes := map[uint64]string{}
	viewOf(ctx, t, c, snapshotter, name, func(root string) {
		must(t, filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
			if err != nil || p == root {
				return err
			}
			var st unix.Stat_t
			if err := unix.Lstat(p, &st); err != nil {
				return err
			}
			in := strings.TrimPrefix(p, root)
			line := fmt.Sprintf("%s %o %d:%d %d rdev %d links %d", in, st.Mode, st.Uid, st.Gid, st.Size, st.Rdev, st.Nlink)
			// Folders that no entry names are made now.
			if st.Mtim.Sec < 1_750_000_000 {
				line += fmt.Sprintf(" at %d", st.Mtim.Nano())
			}
			if target, err := os.Readlink(p); err == nil {
				line += " to " + target
			}
			if st.Mode&unix.S_IFMT == unix.S_IFREG {
				data, err := os.ReadFile(p)
				if err != nil {
					return err
				}
				if first := inodes[st.Ino]; first != "" {
					line += " is " + first
				}
				inodes[st.Ino] = in
				line += fmt.Sprintf(" %q", data)
			}
			for _, attr := range []string{"user.colour", "security.capability"} {
				buf := make([]byte, 64)
				if n, err := unix.Lgetxattr(p, attr, buf); err == nil {
					line += fmt.Sprintf(" %s=%q", attr, buf[:n])
				}
			}
			out = append(out, line)
			return nil
		}))
	})
	return out
}
