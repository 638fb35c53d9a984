package images_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// stuck is a registry in front of another: of a layer it sends the first half,
// and then nothing more. It returns its host.
func stuck(t *testing.T, r *labtest.Registry) string {
	t.Helper()
	to := &url.URL{Scheme: "http", Host: r.Host}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) { p.SetURL(to) },
		ModifyResponse: func(res *http.Response) error {
			if strings.Contains(res.Request.URL.Path, "/blobs/") && res.ContentLength > halfAt {
				res.Body = &halfBody{Body: res.Body, left: res.ContentLength / 2, done: res.Request.Context().Done()}
			}
			return nil
		},
		FlushInterval: -1,
	}
	s := httptest.NewServer(proxy)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// halfAt is the size, in bytes, above which a blob is sent by half. Containerd
// tells of each mebibyte.
const halfAt = 4 << 20

type halfBody struct {
	Body interface {
		Read([]byte) (int, error)
		Close() error
	}
	left int64
	done <-chan struct{}
}

func (b *halfBody) Close() error { return b.Body.Close() }

func (b *halfBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		<-b.done
		return 0, errors.New("the client has left")
	}
	n, err := b.Body.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// noise is text that does not compress, and is no other test's.
func noise(t *testing.T, size int) string {
	t.Helper()
	return t.Name() + string(random(t, size))
}

// TestPullHalf has a registry that sends half of a layer: the pull ends when it
// is interrupted, or when the registry has been silent for too long, and in both
// cases at once and with nothing half-imported.
func TestPullHalf(t *testing.T) {
	r := labtest.PlainRegistry(t)
	for name, c := range map[string]struct {
		stall time.Duration
		want  error
	}{
		"interrupted": {time.Minute, context.Canceled},
		"silent":      {time.Second, images.ErrUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			leakcheck.Check(t)
			ctx, cl, s := connect(t)
			layer := layerOf(t, noise(t, 2*halfAt))
			p := publishLayer(ctx, t, cl, s, r, "half:1", ocispec.MediaTypeImageLayer, layer, layer)
			ref := strings.Replace(p.ref, r.Host, stuck(t, r), 1)
			before := stored(ctx, t, cl)
			pctx, cancel := context.WithCancel(ctx)
			defer cancel()
			got := make(chan time.Time, 1)
			remote := images.Remote{Stall: c.stall, Progress: func(p images.Progress) {
				if p.State == images.StateActive && p.Done > 0 {
					select {
					case got <- time.Now():
					default:
					}
					if errors.Is(c.want, context.Canceled) {
						cancel()
					}
				}
			}}
			_, err := s.Pull(pctx, ref, remote)
			if !errors.Is(err, c.want) {
				t.Errorf("got %v", err)
			}
			select {
			case begin := <-got:
				if took := time.Since(begin) - min(c.stall, time.Second); took > 3*time.Second {
					t.Errorf("it ended %s late", took)
				}
			default:
				t.Error("it ended before half of the layer was there")
			}
			sameStore(ctx, t, cl, before, 10*time.Second)
		})
	}
}

// TestLease looks at the lease of a pull that waits: it tells whose it is and
// ends by itself, should bottle be killed.
func TestLease(t *testing.T) {
	leakcheck.Check(t)
	ctx, c, s := connect(t)
	pctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	ref := listenSilently(t) + "/a:1"
	go func() {
		_, err := s.Pull(pctx, ref, images.Remote{})
		ended <- err
	}()
	var found []leases.Lease
	for begin := time.Now(); len(found) == 0 && time.Since(begin) < 10*time.Second; time.Sleep(20 * time.Millisecond) {
		found = leftLease(ctx, t, c, "pull "+ref)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if len(found) != 1 {
		t.Fatalf("the leases are %v", found)
	}
	if left := leftLease(ctx, t, c, "pull "+ref); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
