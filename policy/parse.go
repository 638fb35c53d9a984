package policy

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"github.com/docker/go-units"
	"go.yaml.in/yaml/v4"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/manifest"
)

// Bounds of limits, as in a manifest.
const (
	minSize = 64 << 20
	maxSize = 1 << 50
	maxPids = 1 << 22
	maxCPUs = 4096

	maxBottles = 10_000
)

func (d *decoder) policy(n *yaml.Node, p *Policy) {
	version := false
	d.fields(n, "the policy", map[string]func(*yaml.Node){
		"version":  func(n *yaml.Node) { version = true; d.integer(n, "version", 1, 1) },
		"runtimes": func(n *yaml.Node) { p.Runtimes = d.list(n, "runtimes", oneOf("runc", "runsc")) },
		"proxies":  func(n *yaml.Node) { d.proxies(n, &p.Proxies) },
		"images":   func(n *yaml.Node) { p.Images = d.list(n, "images", imagePattern) },
		"egress":   func(n *yaml.Node) { d.egress(n, &p.Egress) },
		"limits":   func(n *yaml.Node) { d.limits(n, &p.Limits) },
		"bottles_per_user": func(n *yaml.Node) {
			p.BottlesPerUser = int(d.integer(n, "bottles_per_user", 1, maxBottles))
		},
		"builds":    func(n *yaml.Node) { d.builds(n, &p.Builds) },
		"kept_work": func(n *yaml.Node) { p.NoKeptWork = !d.boolean(n, "kept_work") },
		"learn":     func(n *yaml.Node) { p.NoLearn = !d.boolean(n, "learn") },
		"secrets":   func(n *yaml.Node) { p.Secrets = d.list(n, "secrets", oneOf(SecretSources...)) },
	})
	if n.Kind == yaml.MappingNode && !version {
		d.fail(n, "start the file with version: 1", "missing version")
	}
}

func (d *decoder) proxies(n *yaml.Node, p *Proxies) {
	d.fields(n, "proxies", map[string]func(*yaml.Node){
		"kinds":  func(n *yaml.Node) { p.Kinds = d.list(n, "kinds", oneOf(manifest.ProxyBuiltin, manifest.ProxyPipelock)) },
		"images": func(n *yaml.Node) { p.Images = d.list(n, "images", pinnedImage) },
	})
}

func (d *decoder) egress(n *yaml.Node, e *Egress) {
	d.fields(n, "egress", map[string]func(*yaml.Node){
		"never":   func(n *yaml.Node) { e.Never = d.list(n, "never", neverEntry) },
		"at_most": func(n *yaml.Node) { e.AtMost = d.list(n, "at_most", allowEntry) },
		"private": func(n *yaml.Node) { e.Private = d.list(n, "private", privateEntry) },
	})
}

func (d *decoder) builds(n *yaml.Node, b *Builds) {
	d.fields(n, "builds", map[string]func(*yaml.Node){
		"allowed":      func(n *yaml.Node) { b.Forbidden = !d.boolean(n, "allowed") },
		"host_network": func(n *yaml.Node) { b.HostNetwork = d.boolean(n, "host_network") },
		"at_most":      func(n *yaml.Node) { b.AtMost = d.list(n, "at_most", allowEntry) },
	})
}

func (d *decoder) limits(n *yaml.Node, l *manifest.Limits) {
	d.fields(n, "limits", map[string]func(*yaml.Node){
		"memory":    func(n *yaml.Node) { l.Memory = d.size(n, "memory") },
		"disk":      func(n *yaml.Node) { l.Disk = d.size(n, "disk") },
		"workspace": func(n *yaml.Node) { l.Workspace = d.size(n, "workspace") },
		"pids":      func(n *yaml.Node) { l.Pids = d.integer(n, "pids", 16, maxPids) },
		"cpus": func(n *yaml.Node) {
			v, err := strconv.ParseFloat(n.Value, 64)
			if n.Kind != yaml.ScalarNode || err != nil || !(v >= 0.01 && v <= maxCPUs) {
				d.fail(n, "", "invalid cpus: expected a number from 0.01 to %d", maxCPUs)
				return
			}
			l.CPUs = v
		},
	})
}

func (d *decoder) size(n *yaml.Node, what string) int64 {
	v, err := units.RAMInBytes(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil || v < minSize || v > maxSize {
		d.fail(n, "", "invalid %s: expected a size from 64MiB to 1PiB, such as 4GiB", what)
		return 0
	}
	return v
}

// allowEntry checks an entry of a list of allowed hosts.
func allowEntry(s string) (string, error) {
	_, err := egress.Entries{Allow: []string{s}}.Policy()
	return s, inner(err)
}

// neverEntry checks an entry of egress.never. A host is denied on all ports, which all
// proxies can enforce.
func neverEntry(s string) (string, error) {
	entry, err := egress.ParseListEntry(s)
	if err != nil {
		return s, err
	}
	for _, r := range entry.Rules {
		if r.Port != 0 && entry.Preset == "" {
			return s, &hint.Error{Err: fmt.Errorf("unexpected port in %s", quoted(s)), Hint: "write the host without a port: it is denied on all ports"}
		}
	}
	return s, nil
}

func privateEntry(s string) (string, error) {
	_, err := egress.Entries{AllowPrivate: []string{s}}.Policy()
	return s, inner(err)
}

// inner returns the error without the index of the entry.
func inner(err error) error {
	if u, ok := err.(interface{ Unwrap() error }); ok && err != nil && hint.Of(err) == "" {
		return u.Unwrap()
	}
	return err
}

// pinnedImage checks and normalises an image with a digest.
func pinnedImage(s string) (string, error) {
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return "", fmt.Errorf("%s: %w", quoted(s), err)
	}
	digested, ok := named.(reference.Digested)
	if !ok {
		return "", &hint.Error{Err: fmt.Errorf("missing digest of %s", quoted(s)), Hint: "write it as NAME@sha256:…: a name alone does not determine the content"}
	}
	return reference.TrimNamed(named).String() + "@" + digested.Digest().String(), nil
}

// imagePattern checks and normalises a pattern of images.
func imagePattern(s string) (string, error) {
	if prefix, ok := strings.CutSuffix(s, "/*"); ok {
		named, err := reference.ParseNormalizedNamed(prefix + "/x")
		if err != nil || strings.ContainsAny(prefix, "@*") {
			return "", &hint.Error{Err: fmt.Errorf("invalid pattern %s", quoted(s)), Hint: "write it as registry.example/team/*"}
		}
		return strings.TrimSuffix(named.String(), "/x") + "/*", nil
	}
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return "", fmt.Errorf("%s: %w", quoted(s), err)
	}
	if _, ok := named.(reference.Digested); ok {
		return pinnedImage(s)
	}
	return named.String(), nil
}
