package bottle

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/egress/inject"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/provision"
	"github.com/bot-bottle/bottle/proxy"
)

// injection is what a bottle has whose proxy inserts secrets or checks requests: the proxy
// gets the values and the authority's key, and the agent gets placeholders and the
// certificate.
type injection struct {
	ca      *inject.CA
	secrets []inject.Secret
	roots   []byte
}

// newInjection creates an authority for the hosts of secrets and of rules, and placeholders
// for the secrets of a plan. It returns nil if the plan has neither.
func newInjection(p *plan.Plan) (*injection, error) {
	in, err := newAuthority(p)
	if in == nil || err != nil {
		return nil, err
	}
	return in, in.addSecrets(p)
}

// newAuthority is newInjection without the secrets, of which it needs only the hosts.
func newAuthority(p *plan.Plan) (*injection, error) {
	hosts, err := injectHosts(p)
	if len(hosts) == 0 {
		return nil, err
	}
	in := &injection{}
	if in.ca, err = inject.NewCA(hosts); err != nil {
		return nil, err
	}
	in.roots, err = hostRoots(provision.SystemBundles())
	return in, err
}

// injectHosts returns the hosts of a plan's injected secrets and rules.
func injectHosts(p *plan.Plan) ([]string, error) {
	secrets, rules := injectedSecrets(p), p.Entries().Rules
	switch {
	case len(secrets)+len(rules) == 0:
		return nil, nil
	case len(rules) > 0 && p.Proxy.Kind != manifest.ProxyBuiltin:
		return nil, fmt.Errorf("cannot apply the rules for %s: %s does not read requests", rules[0].Host, p.Proxy.Kind)
	}
	return inject.Hosts(secrets, egress.RuleHosts(rules))
}

// addSecrets creates placeholders for the secrets of a plan.
func (in *injection) addSecrets(p *plan.Plan) error {
	in.secrets = injectedSecrets(p)
	// The proxy would report an invalid value, too, but only after it has started.
	if err := inject.Check(in.ca, in.secrets); err != nil {
		return &hint.Error{Err: fmt.Errorf("cannot inject secrets: %w", err), Hint: "correct the value, or give it to the agent with inject: false"}
	}
	return nil
}

func injectedSecrets(p *plan.Plan) []inject.Secret {
	var secrets []inject.Secret
	for _, v := range p.Injected() {
		secrets = append(secrets, injectedSecret(v))
	}
	return secrets
}

func injectedSecret(v provision.Variable) inject.Secret {
	s := inject.Secret{Name: v.Name, Value: v.Secret, Placeholder: inject.Placeholder(v.Secret.Reveal()), Hosts: v.Inject}
	for _, part := range v.As {
		switch part {
		case manifest.InQuery:
			s.Query = true
		case manifest.InBody:
			s.Body = true
		case manifest.InHeaders: // all of them
		default:
			s.Headers = append(s.Headers, part)
		}
	}
	if slices.Contains(v.As, manifest.InHeaders) {
		s.Headers = nil
	} else {
		s.NoHeaders = len(v.As) > 0 && len(s.Headers) == 0
	}
	return s
}

// hostRoots reads the host's certificate authorities, which verify the hosts that get
// secrets. The image's would not do: whoever made it would decide who gets them.
func hostRoots(paths []string) ([]byte, error) {
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the host's certificate authorities: %w", err)
		}
		if x509.NewCertPool().AppendCertsFromPEM(data) {
			return data, nil
		}
	}
	return nil, &hint.Error{
		Err:  fmt.Errorf("cannot terminate TLS: missing certificate authorities of the host (searched for %s)", strings.Join(paths, ", ")),
		Hint: "install the package ca-certificates on the host",
	}
}

// provisions returns the files and variables for the agent, with placeholders.
func (l *launch) provisions() provision.Agent {
	a := l.plan.Provisions()
	if l.injection == nil {
		return a
	}
	a.Trust = provision.Trust{CA: l.injection.ca.CertPEM(), Roots: l.injection.roots}
	a.Variables = l.injection.placeholders(a.Variables)
	a.Logins = slices.Clone(a.Logins)
	for i, login := range a.Logins {
		a.Logins[i].Secrets = l.injection.placeholders(login.Secrets)
	}
	return a
}

// placeholders returns variables with placeholders in place of injected values.
func (in *injection) placeholders(vars []provision.Variable) []provision.Variable {
	vars = slices.Clone(vars)
	for i, v := range vars {
		at := slices.IndexFunc(in.secrets, func(s inject.Secret) bool { return s.Name == v.Name })
		if len(v.Inject) > 0 && at >= 0 {
			vars[i].Secret = secret.New(in.secrets[at].Placeholder)
		}
	}
	return vars
}

// startProvisions returns those with which the sandbox is started: for a prepared bottle
// without everything that is given to its user's sessions.
func (l *launch) startProvisions() provision.Agent {
	a := l.provisions()
	if l.ahead {
		a.Variables, a.Prompt, a.SSH = nil, "", nil
	}
	return a
}

// writeSecrets gives the process that inserts them its secrets.
func (l *launch) writeSecrets(state proxy.State) error {
	if l.injection == nil {
		return nil
	}
	data, err := inject.Encode(l.injection.ca, l.injection.secrets)
	if err != nil {
		return err
	}
	return l.e.proxies.StoreSecrets(l.plan.Name, state, data, l.injection.roots)
}
