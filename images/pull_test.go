package images_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	store "github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// published is an image that is in a registry but not in the store.
type published struct {
	ref, chain string
	digest     digest.Digest
	remote     images.Remote
}

// publish pushes a unique small image to the registry and removes it from the store.
func publish(ctx context.Context, t *testing.T, c *containerd.Client, s *images.Store, r *labtest.Registry, name string) published {
	t.Helper()
	layer := layerOf(t, r.Host+"/"+name)
	return publishLayer(ctx, t, c, s, r, name, ocispec.MediaTypeImageLayer, layer, layer)
}

// publishLayer is publish with the given layer, uncompressed and as stored.
func publishLayer(ctx context.Context, t *testing.T, c *containerd.Client, s *images.Store, r *labtest.Registry, name, mediaType string, layer, packed []byte) published {
	t.Helper()
	p := published{ref: r.Host + "/" + name}
	if r.CA != "" {
		p.remote = images.Remote{HostsDir: r.HostsDir(t), Login: login(t, r, r.Password)}
	}
	p.chain = putLayer(ctx, t, c, p.ref, runtime.GOARCH, mediaType, layer, packed)
	var err error
	if p.digest, err = s.Push(ctx, p.ref, p.remote); err != nil {
		t.Fatal(err)
	}
	drop(ctx, t, c, p.ref)
	return p
}

// drop removes an image and everything only it referenced.
func drop(ctx context.Context, t *testing.T, c *containerd.Client, ref string) {
	t.Helper()
	if err := c.ImageService().Delete(ctx, ref, store.SynchronousDelete()); err != nil {
		t.Fatal(err)
	}
}

// login returns a Docker configuration with the registry's user and a password.
func login(t *testing.T, r *labtest.Registry, password string) images.Login {
	t.Helper()
	dir := t.TempDir()
	data, err := json.Marshal(map[string]any{"auths": map[string]any{r.Host: map[string]any{"username": r.User, "password": password}}})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600))
	return images.Login{ConfigDir: dir, Home: dir}
}

func TestPull(t *testing.T) {
	for name, start := range map[string]func(testing.TB) *labtest.Registry{
		"plain": labtest.PlainRegistry, "with password and TLS": labtest.PrivateRegistry,
	} {
		t.Run(name, func(t *testing.T) {
			leakcheck.Check(t)
			ctx, c, s := connect(t)
			p := publish(ctx, t, c, s, start(t), "some/image:1")
			var mu sync.Mutex
			last := map[string]images.Progress{}
			p.remote.Progress = func(p images.Progress) {
				mu.Lock()
				defer mu.Unlock()
				last[p.ID] = p
			}
			for _, ref := range []string{p.ref, strings.TrimSuffix(p.ref, ":1") + "@" + p.digest.String()} {
				got, err := s.Pull(ctx, ref, p.remote)
				if err != nil {
					t.Fatal(err)
				}
				if got.Ref != ref || got.Digest != p.digest.String() || got.Platform != "linux/"+runtime.GOARCH {
					t.Errorf("%+v", got)
				}
				if _, err := c.SnapshotService(snapshotter).Stat(ctx, p.chain); err != nil {
					t.Errorf("the image is not unpacked: %v", err)
				}
				mu.Lock()
				if len(last) != 1 {
					t.Errorf("progress of %d layers, want 1: %v", len(last), last)
				}
				for _, p := range last {
					if p.Done != p.Total || p.Total == 0 || p.State != images.StateDone && p.State != images.StateExists {
						t.Errorf("the last progress is %+v", p)
					}
				}
				mu.Unlock()
				drop(ctx, t, c, ref)
			}
		})
	}
}

// TestPullBad: for every kind of registry failure, the store is unchanged.
func TestPullBad(t *testing.T) {
	plain, private := labtest.PlainRegistry(t), labtest.PrivateRegistry(t)
	silent := listenSilently(t)
	for name, c := range map[string]struct {
		registry *labtest.Registry
		change   func(*testing.T, *published)
		want     error
		says     string
	}{
		"missing image": {plain, func(_ *testing.T, p *published) { p.ref = plain.Host + "/none:1" }, images.ErrNotFound, plain.Host + "/none:1"},
		"missing digest": {plain, func(_ *testing.T, p *published) {
			p.ref = plain.Host + "/some/image@" + digest.FromString("none").String()
		}, images.ErrNotFound, ""},
		"no login":       {private, func(_ *testing.T, p *published) { p.remote.Login = images.Login{} }, images.ErrDenied, private.Host},
		"wrong password": {private, func(t *testing.T, p *published) { p.remote.Login = login(t, private, "wrong") }, images.ErrDenied, private.Host},
		"broken login": {private, func(t *testing.T, p *published) {
			must(t, os.WriteFile(filepath.Join(p.remote.Login.ConfigDir, "config.json"), []byte("{"), 0o600))
		}, images.ErrDenied, "config.json"},
		"no helper": {private, func(t *testing.T, p *published) {
			must(t, os.WriteFile(filepath.Join(p.remote.Login.ConfigDir, "config.json"), []byte(`{"credsStore":"none-such"}`), 0o600))
		}, images.ErrDenied, "docker-credential-none-such"},
		"untrusted certificate": {private, func(t *testing.T, p *published) {
			must(t, os.WriteFile(filepath.Join(p.remote.HostsDir, private.Host, "hosts.toml"),
				fmt.Appendf(nil, "server = %[1]q\n[host.%[1]q]\nskip_verify = false\n", "https://"+private.Host), 0o600))
		}, images.ErrUntrusted, private.Host},
		"nothing listens":    {plain, func(_ *testing.T, p *published) { p.ref = "127.0.0.1:1/a:1" }, images.ErrUnreachable, "refused"},
		"silence":            {plain, func(_ *testing.T, p *published) { p.ref = silent + "/a:1"; p.remote.ResponseTimeout = time.Second }, images.ErrUnreachable, silent},
		"no such registry":   {plain, func(_ *testing.T, p *published) { p.ref = "registry.nowhere.test/a:1" }, images.ErrUnreachable, "nowhere.test"},
		"no hosts directory": {plain, func(_ *testing.T, p *published) { p.remote.HostsDir = "/nowhere" }, os.ErrNotExist, "/nowhere"},
		"altered bytes":      {plain, func(t *testing.T, p *published) { alter(t, plain, p.ref, flip) }, images.ErrCorrupt, plain.Host},
		"truncated layer":    {plain, func(t *testing.T, p *published) { alter(t, plain, p.ref, halve) }, images.ErrCorrupt, plain.Host},
	} {
		t.Run(name, func(t *testing.T) {
			leakcheck.Check(t)
			ctx, cl, s := connect(t)
			p := publish(ctx, t, cl, s, c.registry, fmt.Sprintf("bad/%d:1", time.Now().UnixNano()))
			c.change(t, &p)
			before := stored(ctx, t, cl)
			_, err := s.Pull(ctx, p.ref, p.remote)
			sameStore(ctx, t, cl, before, 0)
			if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.says) || strings.Contains(fmt.Sprint(err), "\n") {
				t.Errorf("got %v\nwant %v, with %q in it", err, c.want, c.says)
			}
			if _, err := s.Lookup(ctx, p.ref); !errors.Is(err, images.ErrMissing) {
				t.Errorf("the image exists: %v", err)
			}
		})
	}
}

// listenSilently accepts connections but never responds.
func listenSilently(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, l.Close()) })
	return l.Addr().String()
}

func flip(data []byte) []byte {
	data[len(data)/2] ^= 0xff
	return data
}

func halve(data []byte) []byte { return data[:len(data)/2] }

// alter changes the stored layer of ref in the registry: each test image has a layer
// that contains its name.
func alter(t *testing.T, r *labtest.Registry, ref string, change func([]byte) []byte) {
	t.Helper()
	done := 0
	must(t, filepath.WalkDir(r.Storage, func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Base(name) != "data" {
			return err
		}
		data, err := os.ReadFile(name)
		if err == nil && strings.Contains(string(data), ref) && len(data) >= 1024 {
			done++
			err = os.WriteFile(name, change(data), 0o600)
		}
		return err
	}))
	if done != 1 {
		t.Fatalf("%d layers changed, want 1", done)
	}
}

// TestPullCancelled cancels a pull from a registry that never responds. It ends
// immediately and leaves nothing behind.
func TestPullCancelled(t *testing.T) {
	leakcheck.Check(t)
	ctx, _, s := connect(t)
	ctx, cancel := context.WithCancel(ctx)
	host := listenSilently(t)
	time.AfterFunc(300*time.Millisecond, cancel)
	begin := time.Now()
	_, err := s.Pull(ctx, host+"/a:1", images.Remote{})
	if took := time.Since(begin); !errors.Is(err, context.Canceled) || took > 3*time.Second {
		t.Errorf("after %s: %v", took, err)
	}
}

// TestPullOtherPlatform: pulling an image for another platform, as an index or as a
// bare manifest, does not change the name.
func TestPullOtherPlatform(t *testing.T) {
	r := labtest.PlainRegistry(t)
	for _, bare := range []bool{false, true} {
		t.Run(fmt.Sprint("bare manifest ", bare), func(t *testing.T) {
			leakcheck.Check(t)
			ctx, c, s := connect(t)
			ref := r.Host + "/other:1"
			put(ctx, t, c, ref, "s390x")
			if bare {
				stripIndex(ctx, t, c, ref)
			}
			if _, err := s.Push(ctx, ref, images.Remote{}); err != nil {
				t.Fatal(err)
			}
			drop(ctx, t, c, ref)
			refused := func() {
				t.Helper()
				before := stored(ctx, t, c)
				_, err := s.Pull(ctx, ref, images.Remote{})
				if !errors.Is(err, images.ErrPlatform) || !strings.Contains(err.Error(), "linux/"+runtime.GOARCH) || strings.Contains(err.Error(), "\n") {
					t.Errorf("got %v", err)
				}
				sameStore(ctx, t, c, before, 0)
			}
			refused()
			put(ctx, t, c, ref, runtime.GOARCH)
			refused()
			if _, err := s.Lookup(ctx, ref); err != nil {
				t.Errorf("previous image: %v", err)
			}
		})
	}
}

// stripIndex makes a name point to the only manifest of its index.
func stripIndex(ctx context.Context, t *testing.T, c *containerd.Client, ref string) {
	t.Helper()
	img, err := c.ImageService().Get(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	children, err := store.Children(ctx, c.ContentStore(), img.Target)
	if err != nil {
		t.Fatal(err)
	}
	img.Target = children[0]
	if _, err := c.ImageService().Update(ctx, img, "target"); err != nil {
		t.Fatal(err)
	}
}

func TestPushMissing(t *testing.T) {
	leakcheck.Check(t)
	ctx, _, s := connect(t)
	if _, err := s.Push(ctx, "127.0.0.1:1/none:1", images.Remote{}); !errors.Is(err, images.ErrMissing) {
		t.Errorf("got %v", err)
	}
}

// TestIncomplete removes each part of an image from the store in turn: the error
// reports it and a pull restores it.
func TestIncomplete(t *testing.T) {
	r := labtest.PlainRegistry(t)
	leakcheck.Check(t)
	ctx, c, s := connect(t)
	p := publish(ctx, t, c, s, r, "incomplete:1")
	pull := func() {
		t.Helper()
		if _, err := s.Pull(ctx, p.ref, p.remote); err != nil {
			t.Fatal(err)
		}
	}
	pull()
	parts := map[string]digest.Digest{}
	must(t, store.Walk(ctx, store.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		parts[d.MediaType] = d.Digest
		return store.Children(ctx, c.ContentStore(), d)
	}), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: p.digest, Size: size(ctx, t, c, p.digest)}))
	if len(parts) != 4 {
		t.Fatalf("parts: %v", parts)
	}
	complete := stored(ctx, t, c)
	for kind, part := range parts {
		// An unpacked image does not need its compressed layer.
		if kind == ocispec.MediaTypeImageLayer {
			must(t, c.ContentStore().Delete(ctx, part))
			if err := s.Unpack(ctx, p.ref); err != nil {
				t.Errorf("without %s: %v", kind, err)
			}
			must(t, c.SnapshotService(snapshotter).Remove(ctx, p.chain))
		} else {
			if _, err := s.Lookup(ctx, p.ref); err != nil {
				t.Errorf("before removing %s: %v", kind, err)
			}
			must(t, c.ContentStore().Delete(ctx, part))
			if _, err := s.Lookup(ctx, p.ref); !errors.Is(err, images.ErrIncomplete) || strings.Contains(err.Error(), "\n") {
				t.Errorf("lookup without %s: %v", kind, err)
			}
		}
		if err := s.Unpack(ctx, p.ref); !errors.Is(err, images.ErrIncomplete) || errors.Is(err, images.ErrLayer) {
			t.Errorf("without %s: %v", kind, err)
		}
		if _, err := s.List(ctx); err != nil {
			t.Errorf("list without %s: %v", kind, err)
		}
		pull()
		sameStore(ctx, t, c, complete, 0)
	}
	drop(ctx, t, c, p.ref)
}

// size of a blob, in bytes.
func size(ctx context.Context, t *testing.T, c *containerd.Client, d digest.Digest) int64 {
	t.Helper()
	info, err := c.ContentStore().Info(ctx, d)
	must(t, err)
	return info.Size
}
