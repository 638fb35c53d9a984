// Package injection prepares what a bottle has whose proxy inserts secrets into requests or
// checks them: the proxy gets the values and the key of an authority, and the agent gets
// placeholders and the authority's certificate. How both get them is the caller's.
package injection

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
)

// Injection is what proxy and agent get.
type Injection struct {
	CA      *inject.CA
	Secrets []inject.Secret
	Roots   []byte // the authorities that verify the hosts, in PEM
}

// New creates an authority for the hosts of secrets and of rules, and placeholders
// for the secrets of a plan. It returns nil if the plan has neither.
func New(p *plan.Plan) (*Injection, error) {
	in, err := NewAuthority(p)
	if in == nil || err != nil {
		return nil, err
	}
	return in, in.AddSecrets(p)
}

// NewAuthority is New without the secrets, of which it needs only the hosts.
func NewAuthority(p *plan.Plan) (*Injection, error) {
	hosts, err := Hosts(p)
	if len(hosts) == 0 {
		return nil, err
	}
	in := &Injection{}
	if in.CA, err = inject.NewCA(hosts); err != nil {
		return nil, err
	}
	in.Roots, err = HostRoots(provision.SystemBundles())
	return in, err
}

// Hosts returns the hosts of a plan's injected secrets and rules.
func Hosts(p *plan.Plan) ([]string, error) {
	secrets, rules := secretsOf(p), p.Entries().Rules
	switch {
	case len(secrets)+len(rules) == 0:
		return nil, nil
	case len(rules) > 0 && p.Proxy.Kind != manifest.ProxyBuiltin:
		return nil, fmt.Errorf("cannot apply the rules for %s: %s does not read requests", rules[0].Host, p.Proxy.Kind)
	}
	return inject.Hosts(secrets, egress.RuleHosts(rules))
}

// AddSecrets creates placeholders for the secrets of a plan.
func (in *Injection) AddSecrets(p *plan.Plan) error {
	in.Secrets = secretsOf(p)
	// The proxy would report an invalid value, too, but only after it has started.
	if err := inject.Check(in.CA, in.Secrets); err != nil {
		return &hint.Error{Err: fmt.Errorf("cannot inject secrets: %w", err), Hint: "correct the value, or give it to the agent with inject: false"}
	}
	return nil
}

// Use replaces placeholders by those that the agent has already, by variable.
func (in *Injection) Use(placeholders map[string]string) {
	for i, s := range in.Secrets {
		if p, ok := placeholders[s.Name]; ok {
			in.Secrets[i].Placeholder = p
		}
	}
}

func secretsOf(p *plan.Plan) []inject.Secret {
	var secrets []inject.Secret
	for _, v := range p.Injected() {
		secrets = append(secrets, secretOf(v))
	}
	return secrets
}

func secretOf(v provision.Variable) inject.Secret {
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

// HostRoots reads the host's certificate authorities, which verify the hosts that get
// secrets. The image's would not do: whoever made it would decide who gets them.
func HostRoots(paths []string) ([]byte, error) {
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

// Encode returns the secrets in the form that a proxy reads.
func (in *Injection) Encode() ([]byte, error) { return inject.Encode(in.CA, in.Secrets) }

// Trust returns what the agent needs to trust the authority.
func (in *Injection) Trust() provision.Trust {
	return provision.Trust{CA: in.CA.CertPEM(), Roots: in.Roots}
}

// Placeholders returns variables with placeholders in place of injected values.
func (in *Injection) Placeholders(vars []provision.Variable) []provision.Variable {
	vars = slices.Clone(vars)
	for i, v := range vars {
		at := slices.IndexFunc(in.Secrets, func(s inject.Secret) bool { return s.Name == v.Name })
		if len(v.Inject) > 0 && at >= 0 {
			vars[i].Secret = secret.New(in.Secrets[at].Placeholder)
		}
	}
	return vars
}
