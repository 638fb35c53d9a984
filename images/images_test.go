package images_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	store "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

const snapshotter = "overlayfs"

func TestMain(m *testing.M) {
	if os.Getenv("LAB_STATE") == "" || os.Getenv("CONTAINERD_ADDRESS") == "" {
		fmt.Fprintln(os.Stderr, "these tests run on the test host only: "+
			"scripts/lab up, then scripts/lab exec -- go test ./images")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func connect(t *testing.T) (context.Context, *containerd.Client, *images.Store) {
	t.Helper()
	namespace := os.Getenv("CONTAINERD_NAMESPACE")
	c, err := containerd.New(os.Getenv("CONTAINERD_ADDRESS"), containerd.WithDefaultNamespace(namespace))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, c.Close()) })
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), namespace), time.Minute)
	t.Cleanup(cancel)
	return ctx, c, images.New(c, namespace, "")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

func TestLookup(t *testing.T) {
	leakcheck.Check(t)
	ctx, c, s := connect(t)
	const ref = "docker.io/library/claude-bottle:latest"
	got, err := s.Lookup(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	want, err := c.ImageService().Get(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	if got.Ref != ref || got.Digest != want.Target.Digest.String() || got.Platform != "linux/"+runtime.GOARCH {
		t.Errorf("%+v", got)
	}
	if got.Config.User != "1000:1000" || got.Config.WorkingDir != "/workspace" || !slices.Equal(got.Config.Cmd, []string{"/bin/bash"}) {
		t.Errorf("configuration: %+v", got.Config)
	}
}

func TestMissing(t *testing.T) {
	leakcheck.Check(t)
	ctx, _, s := connect(t)
	for _, ref := range []string{"docker.io/library/absent:latest", "claude-bottle:latest"} {
		_, err := s.Lookup(ctx, ref)
		if !errors.Is(err, images.ErrMissing) || errors.Is(err, images.ErrPlatform) {
			t.Errorf("look up %s: %v", ref, err)
		}
		if err := s.Unpack(ctx, ref); !errors.Is(err, images.ErrMissing) {
			t.Errorf("unpack %s: %v", ref, err)
		}
	}
}

// TestOtherPlatform: an index whose only manifest is for another architecture.
func TestOtherPlatform(t *testing.T) {
	leakcheck.Check(t)
	ctx, c, s := connect(t)
	other := "s390x"
	if runtime.GOARCH == other {
		other = "amd64"
	}
	const ref = "docker.io/library/bottle-test-platform:latest"
	put(ctx, t, c, ref, other)
	if _, err := s.Lookup(ctx, ref); !errors.Is(err, images.ErrPlatform) || errors.Is(err, images.ErrMissing) {
		t.Errorf("look up an image for %s: %v", other, err)
	}
	if err := s.Unpack(ctx, ref); !errors.Is(err, images.ErrPlatform) {
		t.Errorf("unpack an image for %s: %v", other, err)
	}
}

func TestUnpack(t *testing.T) {
	leakcheck.Check(t)
	ctx, c, s := connect(t)
	const ref = "docker.io/library/bottle-test-unpack:latest"
	chain := put(ctx, t, c, ref, runtime.GOARCH)
	if _, err := s.Lookup(ctx, ref); err != nil {
		t.Fatal(err)
	}
	sn := c.SnapshotService(snapshotter)
	if _, err := sn.Stat(ctx, chain); err == nil {
		t.Fatal("the image is already unpacked")
	}
	for range 3 {
		if err := s.Unpack(ctx, ref); err != nil {
			t.Fatal(err)
		}
		if _, err := sn.Stat(ctx, chain); err != nil {
			t.Errorf("after unpacking: %v", err)
		}
	}
}

// put stores an image with one small layer and an index whose only manifest is for
// arch, and returns the name that its snapshot gets when it is unpacked. The image,
// its content and its snapshot are removed at the end of the test.
func put(ctx context.Context, t *testing.T, c *containerd.Client, ref, arch string) string {
	t.Helper()
	layer := layerOf(t, ref)
	return putLayer(ctx, t, c, ref, arch, ocispec.MediaTypeImageLayer, layer, layer)
}

// putLayer is put with the given layer, uncompressed and as stored.
func putLayer(ctx context.Context, t *testing.T, c *containerd.Client, ref, arch, mediaType string, layer, packed []byte) string {
	t.Helper()
	ctx, done, err := c.WithLease(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { must(t, done(ctx)) }()
	platform := ocispec.Platform{OS: "linux", Architecture: arch}
	config := blob(ctx, t, c, ocispec.MediaTypeImageConfig, marshal(t, ocispec.Image{
		Platform: platform, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}},
	}))
	content := blob(ctx, t, c, mediaType, packed)
	manifest := blob(ctx, t, c, ocispec.MediaTypeImageManifest, marshal(t, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config, Layers: []ocispec.Descriptor{content},
	}), config, content)
	manifest.Platform = &platform
	index := blob(ctx, t, c, ocispec.MediaTypeImageIndex, marshal(t, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{manifest},
	}), manifest)
	if _, err := c.ImageService().Create(ctx, store.Image{Name: ref, Target: index}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		dctx := namespaces.WithNamespace(context.Background(), os.Getenv("CONTAINERD_NAMESPACE"))
		if err := c.ImageService().Delete(dctx, ref, store.SynchronousDelete()); !errdefs.IsNotFound(err) {
			must(t, err)
		}
		if _, err := c.ContentStore().Info(dctx, index.Digest); err == nil {
			t.Error("the image's content was not removed")
		}
	})
	return identity.ChainID([]digest.Digest{digest.FromBytes(layer)}).String()
}

// layerOf returns a layer with one file that contains text.
func layerOf(t *testing.T, text string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	must(t, w.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: int64(len(text))}))
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	must(t, w.Close())
	return buf.Bytes()
}

// blob stores data with labels that protect refs from garbage collection.
func blob(ctx context.Context, t *testing.T, c *containerd.Client, mediaType string, data []byte, refs ...ocispec.Descriptor) ocispec.Descriptor {
	t.Helper()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	labels := map[string]string{}
	for i, r := range refs {
		labels[fmt.Sprintf("containerd.io/gc.ref.content.%d", i)] = r.Digest.String()
	}
	err := content.WriteBlob(ctx, c.ContentStore(), "bottle-test-"+d.Digest.String(), bytes.NewReader(data), d, content.WithLabels(labels))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
