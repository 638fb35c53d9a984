package buildkit

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	store "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

func TestMain(m *testing.M) {
	if os.Getenv("LAB_STATE") == "" || os.Getenv("CONTAINERD_ADDRESS") == "" {
		fmt.Fprintln(os.Stderr, "these tests run on the test host only: "+
			"scripts/lab up, then scripts/lab exec -- go test ./images/buildkit")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// builder is one test's state directory and build context.
type builder struct {
	t   *testing.T
	ctx context.Context
	cfg Config
	dir string // the context
	c   *containerd.Client
	log bytes.Buffer // of the last build
}

func newBuilder(t *testing.T) *builder {
	t.Helper()
	leakcheck.Check(t)
	ns := os.Getenv("CONTAINERD_NAMESPACE")
	ctx, cancel := context.WithTimeout(withNamespace(context.Background(), ns), 2*time.Minute)
	t.Cleanup(cancel)
	c, err := containerd.New(os.Getenv("CONTAINERD_ADDRESS"), containerd.WithDefaultNamespace(ns))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, c.Close()) })
	b := &builder{t: t, ctx: ctx, c: c, dir: t.TempDir(), cfg: Config{
		Address: os.Getenv("CONTAINERD_ADDRESS"), Namespace: ns, StateDir: t.TempDir(), CheckLayer: images.CheckLayer,
		Unpack: images.Unpacker(ns, ""),
	}}
	t.Cleanup(func() {
		if _, err := Prune(context.WithoutCancel(ctx), b.cfg, true); err != nil {
			t.Error(err)
		}
		if left, _ := os.ReadDir(b.cfg.StateDir); len(left) > 0 {
			t.Errorf("prune left %v in the state directory", left)
		}
	})
	return b
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

func (b *builder) write(name, text string) {
	b.t.Helper()
	path := filepath.Join(b.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// build builds the context's Dockerfile. The image is removed at the end of the test.
func (b *builder) build(req Request) (Result, error) {
	b.t.Helper()
	b.log.Reset()
	req.Progress, req.Out = "plain", &b.log
	if req.Context == "" && req.Tar == nil {
		req.Context = b.dir
	}
	if req.Dockerfile == "" {
		req.Dockerfile = filepath.Join(b.dir, "Dockerfile")
	}
	for _, name := range req.Names {
		b.t.Cleanup(func() {
			_ = b.c.ImageService().Delete(context.WithoutCancel(b.ctx), name, store.SynchronousDelete()) // missing after a failed build
		})
	}
	return Build(b.ctx, b.cfg, req)
}

func (b *builder) good(req Request) Result {
	b.t.Helper()
	res, err := b.build(req)
	if err != nil {
		b.t.Fatalf("%v\n%s", err, b.log.String())
	}
	return res
}

// bad expects an error that contains all of want.
func (b *builder) bad(req Request, want ...string) {
	b.t.Helper()
	_, err := b.build(req)
	if err == nil {
		b.t.Fatalf("no error, want one that contains %q", want)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			b.t.Errorf("got %q, want it to contain %q", err, w)
		}
	}
}

// ref returns an image name for this test.
func (b *builder) ref() string {
	return "docker.io/library/" + strings.ToLower(strings.NewReplacer("/", "-", "#", "-").Replace(b.t.Name())) + ":latest"
}

// read returns an image's configuration and the content of those files that exist.
func (b *builder) read(ref string, paths ...string) (ocispec.Image, map[string]string) {
	b.t.Helper()
	img, err := b.c.GetImage(b.ctx, ref)
	if err != nil {
		b.t.Fatal(err)
	}
	config, err := img.Config(b.ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	data, err := content.ReadBlob(b.ctx, b.c.ContentStore(), config)
	if err != nil {
		b.t.Fatal(err)
	}
	var spec ocispec.Image
	if err := json.Unmarshal(data, &spec); err != nil {
		b.t.Fatal(err)
	}
	sn := b.c.SnapshotService("overlayfs")
	key := "view-" + b.ref()
	ctx, done, err := b.c.WithLease(b.ctx) // protects the view from garbage collection
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { must(b.t, done(b.ctx)) }()
	mounts, err := sn.View(ctx, key, identity.ChainID(spec.RootFS.DiffIDs).String())
	if err != nil {
		b.t.Fatalf("the image is not unpacked: %v", err)
	}
	defer func() { must(b.t, sn.Remove(b.ctx, key)) }()
	files := map[string]string{}
	err = mount.WithReadonlyTempMount(b.ctx, mounts, func(root string) error {
		for _, p := range paths {
			data, err := os.ReadFile(filepath.Join(root, p))
			if os.IsNotExist(err) {
				continue
			}
			if err != nil {
				return err
			}
			files[p] = string(data)
		}
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return spec, files
}

func newKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
