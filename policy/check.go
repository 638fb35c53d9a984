package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/docker/go-units"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/manifest"
)

// Bound is what a key of the policy has changed of a request.
type Bound struct {
	Key    string `json:"key"`
	Effect string `json:"effect"`
}

// Runtime checks the runtime of an agent. By default it is gVisor's: under runc an agent
// shares the host's kernel.
func (r *Rules) Runtime(name string) error {
	if r == nil {
		return nil
	}
	allowed := r.policy.Runtimes
	if allowed == nil {
		allowed = []string{"runsc"}
	}
	if slices.Contains(allowed, name) {
		return nil
	}
	fix := ""
	if len(allowed) > 0 {
		fix = "use --runtime " + allowed[0]
	}
	return r.refuse("runtimes", fix, "runtime %s", name)
}

// Proxy checks the proxy that enforces a bottle's policy. The digest of an image is
// required: whoever chooses its content decides what it lets through.
func (r *Rules) Proxy(kind, image, digest string) error {
	if r == nil {
		return nil
	}
	kinds := r.policy.Proxies.Kinds
	if kinds != nil && !slices.Contains(kinds, kind) {
		fix := ""
		if len(kinds) > 0 {
			fix = "use --proxy " + kinds[0]
		}
		return r.refuse("proxies.kinds", fix, "proxy %s", kind)
	}
	if kind != manifest.ProxyPipelock {
		return nil
	}
	name, _, _ := strings.Cut(image, "@")
	if digest != "" && slices.ContainsFunc(r.policy.Proxies.Images, func(pinned string) bool {
		base, sum, _ := strings.Cut(pinned, "@")
		return sum == digest && base == untagged(name)
	}) {
		return nil
	}
	fix := "use --proxy " + manifest.ProxyBuiltin
	if kinds != nil && !slices.Contains(kinds, manifest.ProxyBuiltin) {
		fix = "use an image that the policy lists"
	}
	if digest != "" {
		return r.refuse("proxies.images", fix, "proxy image %s with the digest %s", name, digest)
	}
	return r.refuse("proxies.images", fix, "proxy image %s without a known digest", name)
}

// untagged returns a normalised name without its tag.
func untagged(name string) string {
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return name[:i]
	}
	return name
}

// Image checks an image to run, by its normalised name and its digest. With an unknown
// digest, before a pull or a build, an image passes if some digest would: it must be
// checked again.
func (r *Rules) Image(ref, digest string) error {
	if r == nil || r.policy.Images == nil {
		return nil
	}
	name, written, _ := strings.Cut(ref, "@")
	if digest == "" {
		digest = written
	}
	for _, pattern := range r.policy.Images {
		base, pinned, isPinned := strings.Cut(pattern, "@")
		prefix, isPrefix := strings.CutSuffix(pattern, "/*")
		switch {
		case isPrefix && strings.HasPrefix(name, prefix+"/"),
			isPinned && base == untagged(name) && (digest == pinned || digest == ""),
			!isPinned && !isPrefix && (pattern == name || pattern == untagged(name)):
			return nil
		}
	}
	fix := "use an image that bottle policy show lists"
	if digest != "" {
		return r.refuse("images", fix, "image %s with the digest %s", name, digest)
	}
	return r.refuse("images", fix, "image %s", name)
}

// Egress checks the egress policy of a bottle.
func (r *Rules) Egress(e egress.Entries, learn bool) error {
	if r == nil {
		return nil
	}
	var problems hint.Problems
	bounds := r.policy.Egress
	outside, err := e.PrivateOutside(bounds.Private)
	problems.Add(err)
	for _, one := range outside {
		problems.Add(r.refuse("egress.private", "remove it from egress.allow_private in the manifest", "private destination %s", one))
	}
	problems.Add(r.hosts(e, "egress.at_most", bounds.AtMost))
	within, err := e.Within(bounds.Never)
	problems.Add(err)
	for _, one := range within {
		problems.Add(r.refuse("egress.never", "remove it from the manifest", "host %s", one))
	}
	switch {
	case learn && r.policy.NoLearn:
		problems.Add(r.refuse("learn", "run without it", "--learn"))
	case learn && bounds.AtMost != nil:
		problems.Add(r.refuse("egress.at_most", "run without it", "--learn, which allows every public host,"))
	}
	return problems.Err()
}

// hosts checks entries against the list of a key, if there is one.
func (r *Rules) hosts(e egress.Entries, key string, most []string) error {
	if most == nil {
		return nil
	}
	outside, err := e.Outside(most)
	if err != nil {
		return err
	}
	var problems hint.Problems
	for _, one := range outside {
		problems.Add(r.refuse(key, "remove it from the manifest", "host %s", one))
	}
	return problems.Err()
}

// Never returns the hosts that are denied to every bottle.
func (r *Rules) Never() []string {
	if r == nil {
		return nil
	}
	return r.policy.Egress.Never
}

// Limits checks the limits in a manifest, and returns those of the bottle: a limit that
// the manifest does not set is at most the policy's.
func (r *Rules) Limits(written, complete manifest.Limits) (manifest.Limits, []Bound, error) {
	if r == nil {
		return complete, nil, nil
	}
	most := r.policy.Limits
	var bounds []Bound
	var problems hint.Problems
	number := func(v float64) string { return fmt.Sprintf("%g", v) }
	for _, l := range []struct {
		name                    string
		written, most, complete float64 // 0: no limit
		show                    func(float64) string
		lower                   func()
	}{
		{"memory", float64(written.Memory), float64(most.Memory), float64(complete.Memory), units.BytesSize, func() { complete.Memory = most.Memory }},
		{"disk", float64(written.Disk), float64(most.Disk), float64(complete.Disk), units.BytesSize, func() { complete.Disk = most.Disk }},
		{"workspace", float64(written.Workspace), float64(most.Workspace), float64(complete.Workspace), units.BytesSize, func() { complete.Workspace = most.Workspace }},
		{"pids", float64(written.Pids), float64(most.Pids), float64(complete.Pids), number, func() { complete.Pids = most.Pids }},
		{"cpus", written.CPUs, most.CPUs, complete.CPUs, number, func() { complete.CPUs = most.CPUs }},
	} {
		key := "limits." + l.name
		switch {
		case l.most == 0:
		case l.written > l.most:
			problems.Add(r.refuse(key, "set at most "+l.show(l.most), "%s %s, which is more than %s,", l.name, l.show(l.written), l.show(l.most)))
		case l.written == 0 && (l.complete == 0 || l.complete > l.most):
			was := "no limit"
			if l.complete > 0 {
				was = l.show(l.complete)
			}
			bounds = append(bounds, Bound{Key: key, Effect: fmt.Sprintf("%s %s instead of %s", l.name, l.show(l.most), was)})
			l.lower()
		}
	}
	return complete, bounds, problems.Err()
}

// KeptWork checks a run whose files outlive its bottle.
func (r *Rules) KeptWork() error {
	if r == nil || !r.policy.NoKeptWork {
		return nil
	}
	return r.refuse("kept_work", "use --cwd-image", "a workspace, which is kept at the end,")
}

// Secret checks the source of a secret.
func (r *Rules) Secret(source, name string) error {
	if r == nil || r.policy.Secrets == nil || slices.Contains(r.policy.Secrets, source) {
		return nil
	}
	return r.refuse("secrets", "remove it from the request", "secret %s from %s", name, strings.ReplaceAll(source, "_", " "))
}

// Bottles checks the number of a user's bottles, with the one that is requested.
func (r *Rules) Bottles(n int) error {
	if r == nil || r.policy.BottlesPerUser == 0 || n <= r.policy.BottlesPerUser {
		return nil
	}
	return r.refuse("bottles_per_user", "remove a bottle: bottle list --all, bottle rm NAME", "bottle %d of at most %d", n, r.policy.BottlesPerUser)
}

// BuildHosts returns what the steps of a build may reach at most; nil: every public host.
func (r *Rules) BuildHosts() []string {
	switch {
	case r == nil:
		return nil
	case r.policy.Builds.AtMost != nil:
		return r.policy.Builds.AtMost
	}
	return r.policy.Egress.AtMost
}

// Build checks a build whose steps use the host's network, or else reach what allow
// lists.
func (r *Rules) Build(hostNetwork bool, allow []string) error {
	switch {
	case r == nil:
		return nil
	case r.policy.Builds.Forbidden:
		return r.refuse("builds.allowed", "use an image that exists", "a build")
	case hostNetwork && !r.policy.Builds.HostNetwork:
		return r.refuse("builds.host_network", "list the hosts of the steps in build.egress", "a build with the host's network")
	case hostNetwork:
		return nil
	}
	e := egress.Entries{Allow: allow}
	key, most := "builds.at_most", r.policy.Builds.AtMost
	if most == nil {
		key, most = "egress.at_most", r.policy.Egress.AtMost
	}
	var problems hint.Problems
	problems.Add(r.hosts(e, key, most))
	within, err := e.Within(r.policy.Egress.Never)
	problems.Add(err)
	for _, one := range within {
		problems.Add(r.refuse("egress.never", "remove it from build.egress", "host %s", one))
	}
	return problems.Err()
}
