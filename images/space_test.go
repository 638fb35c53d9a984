package images_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// smallDisk is the size of a disk that is too small for the test images, in bytes.
const smallDisk = 64 << 20

// connectSmall connects to a containerd with a small disk.
func connectSmall(t *testing.T) (context.Context, *containerd.Client, *images.Store, string) {
	t.Helper()
	ctx, _, _ := connect(t)
	address, disk := labtest.SmallContainerd(t, smallDisk)
	namespace := os.Getenv("CONTAINERD_NAMESPACE")
	c, err := containerd.New(address, containerd.WithDefaultNamespace(namespace))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, c.Close()) })
	return ctx, c, images.New(c, namespace, ""), disk
}

// used returns how much of a disk is in use, in bytes.
func used(t *testing.T, disk string) int64 {
	t.Helper()
	var st unix.Statfs_t
	must(t, unix.Statfs(disk, &st))
	return int64(st.Blocks-st.Bfree) * st.Bsize
}

func zipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, err := w.Write(data)
	must(t, err)
	must(t, w.Close())
	return buf.Bytes()
}

// full verifies that fail returns ErrNoSpace and leaves store and disk unchanged.
func full(ctx context.Context, t *testing.T, c *containerd.Client, disk string, fail func() error) {
	t.Helper()
	before, usedBefore := stored(ctx, t, c), used(t, disk)
	err := fail()
	if !errors.Is(err, images.ErrNoSpace) || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v", err)
	}
	sameStore(ctx, t, c, before, 5*time.Second)
	// containerd removes files asynchronously, and its databases do not shrink.
	now := used(t, disk)
	for deadline := time.Now().Add(10 * time.Second); now > usedBefore+smallDisk/8 && time.Now().Before(deadline); now = used(t, disk) {
		time.Sleep(50 * time.Millisecond)
	}
	if now > usedBefore+smallDisk/8 {
		t.Errorf("%d bytes of the disk are in use, before it was %d", now, usedBefore)
	}
}

// TestNoSpace pulls and derives images that do not fit on containerd's disk:
// compressed, unpacked, or in addition to existing ones. Each failure is reported,
// leaves nothing behind, and the store keeps working.
func TestNoSpace(t *testing.T) {
	leakcheck.Check(t)
	ctx, lab, s := connect(t)
	r := labtest.PlainRegistry(t)
	big := layerOf(t, string(make([]byte, 2*smallDisk)))
	noisy := layerOf(t, noise(t, 2*smallDisk))
	unpacked := publishLayer(ctx, t, lab, s, r, "unpacked:1", ocispec.MediaTypeImageLayerGzip, big, zipped(t, big))
	packed := publishLayer(ctx, t, lab, s, r, "packed:1", ocispec.MediaTypeImageLayer, noisy, noisy)
	fits := publish(ctx, t, lab, s, r, "fits:1")

	ctx, c, small, disk := connectSmall(t)
	pull := func(ref string) func() error {
		return func() error { _, err := small.Pull(ctx, ref, images.Remote{}); return err }
	}
	for range 2 { // repeatable on the same store
		full(ctx, t, c, disk, pull(unpacked.ref))
		full(ctx, t, c, disk, pull(packed.ref))
	}
	must(t, pull(fits.ref)())

	dir := filepath.Join(t.TempDir(), "work")
	must(t, os.Mkdir(dir, 0o755))
	d := images.Derivation{
		Ref: "docker.io/library/bottle-full:cwd", Base: fits.ref, Dir: dir, Target: "/workspace",
		Owner: func(context.Context) (int, int, error) { return 1000, 1000, nil },
	}
	derive := func() error { _, err := small.Derive(ctx, d); return err }
	for name, data := range map[string][]byte{"compresses": bytes.Repeat([]byte("text "), 2*smallDisk/5), "does not": noisy} {
		must(t, os.WriteFile(filepath.Join(dir, "file"), data, 0o644))
		t.Run(name, func(t *testing.T) { full(ctx, t, c, disk, derive) })
	}
	must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("small"), 0o644))
	must(t, derive())
	if img, err := small.Lookup(ctx, d.Ref); err != nil || img.Platform != "linux/"+runtime.GOARCH {
		t.Errorf("%+v, %v", img, err)
	}
	for _, ref := range []string{d.Ref, fits.ref} {
		must(t, small.Remove(ctx, ref))
	}
	if left := stored(ctx, t, c); len(left) > 0 {
		t.Errorf("left in the store: %s", fmt.Sprint(left))
	}
}
