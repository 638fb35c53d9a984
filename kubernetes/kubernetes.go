// Package kubernetes maps the plan of a run to Kubernetes objects, and contains what they
// run from bottle's own image: the walls and the gate in front of the agent, and the files
// of the agent. It talks to no cluster.
package kubernetes

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/imageref"
	"github.com/bot-bottle/bottle/internal/lazyregexp"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/provision"
)

// Options say what a plan does not.
type Options struct {
	Namespace string // empty: bottle-AGENT
	// Prefix is the registry, and the path in it, of the images that bottle builds and of
	// bottle's own; empty: their names are used as they are.
	Prefix string
	// Image is bottle's own; empty: bottle:Version below Prefix.
	Image   string
	Version string // of bottle
	// Sandbox makes the agent a Sandbox of kubernetes-sigs/agent-sandbox, whose controller
	// makes the pod.
	Sandbox bool
	// NoWalls leaves the init container out that needs CAP_NET_ADMIN.
	NoWalls bool
	// Except are networks that the proxy must not reach, in addition to all that are not
	// public: those of nodes with public addresses.
	Except []string
	// Repo is the URL of a git repository that the pod clones; empty: none.
	Repo string
	// Trust is what the agent needs to trust a proxy that inserts secrets or checks requests;
	// nil: it does neither. The caller creates the Secret of such a proxy, with the key
	// SecretsKey, and gives the agent placeholders.
	Trust *provision.Trust
}

// AgentSecret is the Secret with the values of the agent's variables, ProxySecret the one with
// what only the proxy reads, in the form of package inject, and SecretsKey its only key.
const (
	AgentSecret = "agent-env"
	ProxySecret = "proxy-secrets"
	SecretsKey  = "secrets.json"
)

// Names of the objects. Each agent has a namespace of its own.
const (
	agentName   = "agent"
	proxyName   = "proxy"
	filesName   = "agent-files"
	runtimeName = "gvisor"
)

// agentUID is the user of bottle's own images. Pod Security's level restricted needs a
// number, where an image may have a name.
const agentUID = 1000

// proxyUID is the user of the proxy, as on one host.
const proxyUID = 65534

// CheckAgent returns an error for what an agent and its bottle have and no cluster can give
// them. It is called before a plan is made, which would look for these things on this host.
func CheckAgent(a *manifest.Agent, b *manifest.Bottle) error {
	var problems hint.Problems
	if len(b.SSH) > 0 {
		problems.Add(&hint.Error{
			Err:  fmt.Errorf("bottle %q has ssh entries, whose keys stay on this host", a.Bottle),
			Hint: "clone over https through the proxy, with a token as a variable, and remove ssh",
		})
	}
	if len(b.Logins) > 0 {
		problems.Add(&hint.Error{
			Err:  fmt.Errorf("bottle %q has logins, which are files of this host", a.Bottle),
			Hint: "remove logins, and give the agent tokens as variables",
		})
	}
	return problems.Err()
}

// export is one export in progress.
type export struct {
	plan          *plan.Plan
	opt           Options
	slug          string
	repo          Repo   // URL is empty if there is none
	image, bottle string // references: the agent's and bottle's own
}

// Export returns the objects for a plan, in YAML, with a comment on how to use them.
func Export(p *plan.Plan, opt Options) ([]byte, error) {
	e := &export{plan: p, opt: opt}
	var err error
	if e.slug, err = names.Slug(p.Agent); err != nil {
		return nil, err
	}
	var problems hint.Problems
	problems.Add(e.namespace())
	problems.Add(e.images())
	problems.Add(e.check())
	if opt.Repo != "" {
		e.repo, err = ParseRepo(opt.Repo, p)
		problems.Add(err)
	}
	for _, cidr := range opt.Except {
		problems.Add(checkCIDR(cidr))
	}
	if err := problems.Err(); err != nil {
		return nil, err
	}
	objects, err := e.objects()
	if err != nil {
		return nil, err
	}
	return e.render(objects)
}

var label = lazyregexp.New(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

func (e *export) namespace() error {
	fix := "choose another one with --namespace"
	if e.opt.Namespace == "" {
		e.opt.Namespace, fix = "bottle-"+e.slug, "choose one with --namespace"
	}
	if label().MatchString(e.opt.Namespace) {
		return nil
	}
	return &hint.Error{
		Err:  fmt.Errorf("invalid namespace %.100q: want at most 63 letters from a to z, digits and hyphens", e.opt.Namespace),
		Hint: fix,
	}
}

// images decides on the references of the agent's image and bottle's own.
func (e *export) images() error {
	prefix := strings.TrimSuffix(e.opt.Prefix, "/")
	e.image = e.plan.Image
	if e.plan.Build != nil {
		e.image = imageref.Familiar(e.image)
		if !strings.Contains(e.image, "/") {
			e.image = below(prefix, e.image)
		}
	}
	e.bottle = cmp.Or(e.opt.Image, below(prefix, "bottle:"+tagOf(e.opt.Version)))
	for _, ref := range []string{e.image, e.bottle} {
		if _, err := reference.ParseNormalizedNamed(ref); err != nil {
			return &hint.Error{Err: fmt.Errorf("image %.200q: %w", ref, err), Hint: "correct --image-prefix or --bottle-image: registry.example/team"}
		}
	}
	if prefix == "" && (e.opt.Image == "" || e.plan.Build != nil && !strings.Contains(e.image, "/")) {
		return &hint.Error{
			Err:  errors.New("unknown registry: a cluster pulls the images that are built here from one"),
			Hint: "name it with --image-prefix registry.example/team",
		}
	}
	return nil
}

func below(prefix, name string) string {
	if prefix == "" {
		return name
	}
	return prefix + "/" + name
}

var notInTag = lazyregexp.New(`[^A-Za-z0-9_.-]+`)

// tagOf returns a version as the tag of an image, which has no plus sign.
func tagOf(version string) string {
	tag := strings.Trim(notInTag().ReplaceAllString(version, "-"), "-.")
	return cmp.Or(tag, "latest")
}

// check returns an error for what a plan has and cannot be carried over.
func (e *export) check() error {
	p := e.plan
	var problems hint.Problems
	if p.ImageCommand {
		problems.Add(&hint.Error{
			Err:  fmt.Errorf("unknown command: agent %q has none, and its image is not inspected", p.Agent),
			Hint: "set command for the agent in the manifest",
		})
	}
	if p.Learn {
		problems.Add(&hint.Error{Err: errors.New("a cluster's proxy cannot learn a policy"), Hint: "learn it on one host with bottle run --learn"})
	}
	if e.opt.Trust == nil {
		problems.Add(e.checkInject())
	}
	if p.Workspace != nil || p.BaseRef != "" {
		problems.Add(&hint.Error{Err: errors.New("a cluster has no working directory of yours to copy"), Hint: "let the agent clone a git URL through the proxy, with --repo"})
	}
	return problems.Err()
}

// checkInject returns an error for what only a proxy does that has the values.
func (e *export) checkInject() error {
	var problems hint.Problems
	if rules := e.plan.Entries().Rules; len(rules) > 0 {
		problems.Add(&hint.Error{
			Err:  fmt.Errorf("cannot apply the rules for %s in egress.allow: printed objects have no proxy that reads requests", rules[0].Host),
			Hint: "run the agent with bottle kube run and the built-in proxy, or allow the host without rules",
		})
	}
	for _, v := range e.plan.Env {
		if len(v.Inject) > 0 && !v.InjectKind {
			problems.Add(&hint.Error{
				Err:  fmt.Errorf("cannot inject %s: printed objects have no value for the proxy to insert", v.Name),
				Hint: "run the agent with bottle kube run and the built-in proxy, or give it the value itself with inject: false",
			})
		}
	}
	return problems.Err()
}

// Warnings are sentences about what is weaker than on one host.
func Warnings(p *plan.Plan, opt Options) []string {
	var out []string
	if opt.Trust != nil {
		return nil
	}
	for _, v := range p.Env {
		if len(v.Inject) > 0 {
			out = append(out, fmt.Sprintf("%s is not injected here: the agent gets the value itself", v.Name))
		}
	}
	return out
}

// secrets returns the variables whose values come from a Secret.
func (e *export) secrets() []provision.Variable {
	return slices.DeleteFunc(slices.Clone(e.plan.Env), func(v provision.Variable) bool { return !v.IsSecret() })
}

// Namespace returns the namespace of the objects, which is also the agent's name on the
// cluster.
func Namespace(p *plan.Plan, opt Options) (string, error) {
	slug, err := names.Slug(p.Agent)
	if err != nil {
		return "", err
	}
	e := &export{plan: p, opt: opt, slug: slug}
	err = e.namespace()
	return e.opt.Namespace, err
}
