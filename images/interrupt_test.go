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

// stuck starts a proxy in front of a registry that sends the first half of each layer
// and then stalls. It returns the proxy's host.
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

// halfAt is the size, in bytes, above which only half of a blob is sent. containerd
// reports progress for each mebibyte.
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
		return 0, errors.New("client disconnected")
	}
	n, err := b.Body.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// noise returns unique text that does not compress.
func noise(t *testing.T, size int) string {
	t.Helper()
	return t.Name() + string(random(t, size))
}

// TestPullHalf: the registry sends half of a layer. The pull ends immediately when it
// is interrupted or the registry stalls for too long, and leaves nothing behind.
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
			remote := images.Remote{StallTimeout: c.stall, Progress: func(p images.Progress) {
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
					t.Errorf("the pull ended %s late", took)
				}
			default:
				t.Error("the pull ended before half of the layer was received")
			}
			sameStore(ctx, t, cl, before, 10*time.Second)
		})
	}
}

// TestLease checks the lease of a pull in progress: it is labelled and expires in case
// bottle is killed.
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
		found = findLeases(ctx, t, c, "pull "+ref)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if len(found) != 1 {
		t.Fatalf("found leases %v, want one", found)
	}
	if left := findLeases(ctx, t, c, "pull "+ref); len(left) > 0 {
		t.Errorf("leases left: %v", left)
	}
}
