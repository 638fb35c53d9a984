package doctor

import (
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

// proxyImages looks at the image of each bottle of the manifest whose proxy is
// pipelock's, and asks for its digest where the manifest does not have it: without
// one it is whatever a registry has under that name.
func (d *checks) proxyImages(ctx context.Context, e *bottle.Engine, spec plan.Spec) {
	const check = "proxy image"
	m, err := spec.Manifest()
	switch {
	case errors.Is(err, manifest.ErrNotFound):
		d.say(check, LevelOK, "", "there is no manifest here whose proxies could be looked at")
		return
	case err != nil:
		d.say(check, LevelWarn, "bottle config check", "the manifest cannot be read, so that its proxies are not looked at")
		return
	}
	byImage := map[string][]string{}
	for name, b := range m.Bottles {
		if kind := b.Proxy.Kind; kind == manifest.ProxyPipelock || kind == "" && manifest.DefaultProxy == manifest.ProxyPipelock {
			image := b.Proxy.Image
			if image == "" {
				image = plan.DefaultPipelock
			}
			byImage[image] = append(byImage[image], name)
		}
	}
	if len(byImage) == 0 {
		d.say(check, LevelOK, "", "no bottle of %s has an image's proxy", m.Path)
		return
	}
	for _, image := range slices.Sorted(maps.Keys(byImage)) {
		d.proxyImage(ctx, check, e, m.Path, image, slices.Sorted(slices.Values(byImage[image])))
	}
}

func (d *checks) proxyImage(ctx context.Context, check string, e *bottle.Engine, manifest, image string, bottles []string) {
	of := fmt.Sprintf("%s, of %s in %s", image, strings.Join(bottles, ", "), manifest)
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		d.say(check, LevelWarn, "correct it in the manifest", "%s: %v", of, err)
		return
	}
	if _, pinned := named.(reference.Digested); !pinned {
		// What the host has is the best that can be offered.
		named = reference.TagNameOnly(named)
		fix := fmt.Sprintf("bottle pull %s, then bottle doctor again, which will tell the digest", named)
		if e != nil {
			if info, err := e.Image(ctx, named.String()); err == nil {
				fix = fmt.Sprintf("write proxy: {kind: pipelock, image: '%s@%s'} to the manifest, if that is the digest that its publisher names", named, info.Digest)
			}
		}
		d.say(check, LevelWarn, fix, "%s, is not pinned: it is whatever the registry has under that name", of)
		return
	}
	if e == nil {
		d.say(check, LevelWarn, "fix containerd first", "%s: whether containerd has it is not known", of)
		return
	}
	switch _, err := plan.ProxyImage(ctx, e, named); {
	case errors.Is(err, plan.ErrImageMissing):
		d.say(check, LevelOK, "", "%s, is pinned, and will be pulled", of)
	case err != nil:
		d.say(check, LevelWarn, orText(hint.Of(err), "bottle pull "+image), "%v", err)
	default:
		d.say(check, LevelOK, "", "%s, is pinned, and is there", of)
	}
}

func orText(text, other string) string {
	if text == "" {
		return other
	}
	return text
}
