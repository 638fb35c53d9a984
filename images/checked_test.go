package images_test

import (
	"errors"
	"runtime"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// TestLayerCheckedOnce: a layer is labelled only after it was checked, and is then not
// read again. The label holds for one media type: as another one, the same bytes may
// be read differently.
func TestLayerCheckedOnce(t *testing.T) {
	leakcheck.Check(t)
	ctx, c, s := connect(t)
	const key, mediaType = "bottle.checked", ocispec.MediaTypeImageLayer
	label := func(layer []byte) string {
		info, err := c.ContentStore().Info(ctx, digest.FromBytes(layer))
		must(t, err)
		return info.Labels[key]
	}
	good := tarOf(t, written, regular("file"))
	const goodRef = "docker.io/library/bottle-checked:good"
	putLayer(ctx, t, c, goodRef, runtime.GOARCH, mediaType, good, good)
	if got := label(good); got != "" {
		t.Errorf("label %q before the check", got)
	}
	must(t, s.Unpack(ctx, goodRef))
	if got := label(good); got != "1 "+mediaType {
		t.Errorf("label %q after the check", got)
	}

	bad := tarOf(t, written, regular("../escape"))
	const badRef = "docker.io/library/bottle-checked:bad"
	putLayer(ctx, t, c, badRef, runtime.GOARCH, mediaType, bad, bad)
	for _, before := range []string{"", "1", "1 " + ocispec.MediaTypeImageLayerGzip, "0 " + mediaType} {
		_, err := c.ContentStore().Update(ctx, content.Info{Digest: digest.FromBytes(bad), Labels: map[string]string{key: before}}, "labels."+key)
		must(t, err)
		if err := s.Unpack(ctx, badRef); !errors.Is(err, images.ErrLayer) {
			t.Errorf("with label %q: %v", before, err)
		}
		if got := label(bad); got != before {
			t.Errorf("a refused layer has label %q", got)
		}
	}
	// Control: it is the label that decides.
	_, err := c.ContentStore().Update(ctx, content.Info{Digest: digest.FromBytes(bad), Labels: map[string]string{key: "1 " + mediaType}}, "labels."+key)
	must(t, errors.Join(err, s.Unpack(ctx, badRef)))
}
