package labtest

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	store "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// built caches the programs compiled by Build, by package.
var built sync.Map

// Build compiles a command of this module as a static binary and returns its
// content.
func Build(t testing.TB, pkg string) []byte {
	t.Helper()
	if data, ok := built.Load(pkg); ok {
		return data.([]byte)
	}
	out := filepath.Join(t.TempDir(), "program")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, text)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	built.Store(pkg, data)
	return data
}

// PutImage stores an image with one layer in the test host's containerd, without
// unpacking it, and removes it when the test ends. The keys of files are paths
// without a leading slash. It returns the image's digest.
func PutImage(t testing.TB, ref string, config ocispec.ImageConfig, files map[string][]byte) string {
	t.Helper()
	var entries []Entry
	for name, data := range files {
		entries = append(entries, Entry{Header: tar.Header{Name: name, Mode: 0o755, Typeflag: tar.TypeReg}, Data: data})
	}
	return PutEntries(t, ref, config, entries)
}

// Entry is an entry of a layer: a file of any type.
type Entry struct {
	tar.Header
	Data []byte
}

// PutEntries is PutImage for a layer with entries of any type.
func PutEntries(t testing.TB, ref string, config ocispec.ImageConfig, entries []Entry) string {
	t.Helper()
	namespace := os.Getenv("CONTAINERD_NAMESPACE")
	c, err := containerd.New(os.Getenv("CONTAINERD_ADDRESS"), containerd.WithDefaultNamespace(namespace))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), namespace), time.Minute)
	t.Cleanup(func() {
		defer cancel()
		err := c.ImageService().Delete(ctx, ref, store.SynchronousDelete())
		if err != nil {
			t.Errorf("remove image %s: %v", ref, err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	leased, done, err := c.WithLease(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = done(ctx) }()
	target, err := writeImage(leased, c.ContentStore(), config, entries)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ImageService().Create(ctx, store.Image{Name: ref, Target: target}); err != nil {
		t.Fatal(err)
	}
	return target.Digest.String()
}

func writeImage(ctx context.Context, cs content.Store, config ocispec.ImageConfig, entries []Entry) (ocispec.Descriptor, error) {
	layer, err := archive(entries)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	img := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, Config: config,
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}},
	}
	layerDesc, err := blob(ctx, cs, ocispec.MediaTypeImageLayer, layer, nil)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	configDesc, err := blobJSON(ctx, cs, ocispec.MediaTypeImageConfig, img, nil)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: configDesc, Layers: []ocispec.Descriptor{layerDesc},
	}
	// The labels keep config and layer from garbage collection after the lease.
	return blobJSON(ctx, cs, ocispec.MediaTypeImageManifest, manifest, map[string]string{
		"containerd.io/gc.ref.content.config": configDesc.Digest.String(),
		"containerd.io/gc.ref.content.l.0":    layerDesc.Digest.String(),
	})
}

func archive(entries []Entry) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := e.Header
		h.Size = int64(len(e.Data))
		if err := w.WriteHeader(&h); err != nil {
			return nil, err
		}
		if _, err := w.Write(e.Data); err != nil {
			return nil, err
		}
	}
	return buf.Bytes(), w.Close()
}

func blobJSON(ctx context.Context, cs content.Store, mediaType string, v any, labels map[string]string) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return blob(ctx, cs, mediaType, data, labels)
}

func blob(ctx context.Context, cs content.Store, mediaType string, data []byte, labels map[string]string) (ocispec.Descriptor, error) {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	err := content.WriteBlob(ctx, cs, desc.Digest.String(), bytes.NewReader(data), desc, content.WithLabels(labels))
	return desc, err
}
