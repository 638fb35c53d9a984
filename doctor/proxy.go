package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/plan"
	"github.com/distribution/reference"
)

// proxyImages checks the image of each bottle of the manifest whose proxy is pipelock,
// and asks for its digest if the manifest does not pin it: without a digest a registry
// decides what runs under that name. err is why there is no manifest.
func (d *checks) proxyImages(ctx context.Context, e *bottle.Engine, m *manifest.Manifest, err error) {
	const check = "proxy image"
	switch {
	case errors.Is(err, manifest.ErrNotFound):
		d.report(check, LevelOK, "", "no manifest here, so no proxy images to check")
		return
	case err != nil:
		d.report(check, LevelWarn, "bottle config check", "cannot read the manifest: its proxy images were not checked")
		return
	}
	byImage := map[string][]string{}
	for name, b := range m.Bottles {
		if kind := b.Proxy.Kind; kind == manifest.ProxyPipelock || kind == "" && manifest.DefaultProxy == manifest.ProxyPipelock {
			image := cmp.Or(b.Proxy.Image, plan.DefaultPipelock)
			byImage[image] = append(byImage[image], name)
		}
	}
	if len(byImage) == 0 {
		d.report(check, LevelOK, "", "no bottle in %s runs its proxy from an image", m.Path)
		return
	}
	for _, image := range slices.Sorted(maps.Keys(byImage)) {
		d.proxyImage(ctx, check, e, m.Path, image, slices.Sorted(slices.Values(byImage[image])))
	}
}

func (d *checks) proxyImage(ctx context.Context, check string, e *bottle.Engine, manifest, image string, bottles []string) {
	subject := fmt.Sprintf("%s, used by %s in %s", image, strings.Join(bottles, ", "), manifest)
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		d.report(check, LevelWarn, "correct the name in the manifest", "%s: %v", subject, err)
		return
	}
	if _, pinned := named.(reference.Digested); !pinned {
		// Suggest the digest that the host has, if any.
		named = reference.TagNameOnly(named)
		fix := fmt.Sprintf("bottle pull %s, then bottle doctor again, which prints the digest", named)
		if e != nil {
			if info, err := e.Image(ctx, named.String()); err == nil {
				fix = fmt.Sprintf("write proxy: {kind: pipelock, image: '%s@%s'} to the manifest, if its publisher states that digest", named, info.Digest)
			}
		}
		d.report(check, LevelWarn, fix, "%s, is not pinned: the registry decides what runs under that name", subject)
		return
	}
	if e == nil {
		d.report(check, LevelWarn, "fix containerd first", "%s: whether containerd has it was not checked", subject)
		return
	}
	switch _, err := plan.ProxyImage(ctx, e, named); {
	case errors.Is(err, plan.ErrImageMissing):
		d.report(check, LevelOK, "", "%s, is pinned and will be pulled", subject)
	case err != nil:
		d.report(check, LevelWarn, cmp.Or(hint.Of(err), "bottle pull "+image), "%v", err)
	default:
		d.report(check, LevelOK, "", "%s, is pinned and present", subject)
	}
}
