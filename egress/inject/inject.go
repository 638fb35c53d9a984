package inject

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bot-bottle/bottle/internal/secret"
)

// Secret is a credential that is inserted for some hosts.
type Secret struct {
	// Name identifies the secret in events, for example a variable's name.
	Name string
	// Value is the real value. It is at least 8 characters long.
	Value secret.Value
	// Placeholder is what the agent has instead, from [Placeholder].
	Placeholder string
	// Hosts are the DNS names that the secret is for, each with an optional port
	// (443).
	Hosts []string
	// Headers are the request headers in which the placeholder is replaced. Without
	// any, it is replaced in every header that servers do not usually store or
	// return, unless NoHeaders is set.
	Headers   []string
	NoHeaders bool
	// Query permits the placeholder in the query of a URL.
	Query bool
	// Body permits the placeholder in bodies, of at most [MaxBody] bytes.
	Body bool
}

// MaxBody is the size of the largest body in which a placeholder is replaced.
const MaxBody = 1 << 20

// minValue is the length of the shortest value that can be replaced in responses
// without changing ordinary text.
const minValue = 8

// Kind is what an [Event] reports.
type Kind string

// Kinds of events.
const (
	// KindRequest is a request that was sent on, and has ended.
	KindRequest Kind = "request"
	// KindMisuse is a placeholder in a request where it may not be.
	KindMisuse Kind = "misuse"
	// KindHost is a server name or a Host other than that of the tunnel, or a method
	// that leads to another host.
	KindHost Kind = "host"
	// KindEcho is a real value in a response, which was replaced.
	KindEcho Kind = "echo"
	// KindUpstream is an upstream that cannot be used.
	KindUpstream Kind = "upstream"
	// KindRule is a request that [Config.Check] has denied.
	KindRule Kind = "rule"
	// KindRefused is a request that was refused for another reason.
	KindRefused Kind = "refused"
)

// Event is something that happened in a terminated tunnel. It contains neither values
// nor placeholders nor queries.
type Event struct {
	Kind   Kind
	Target string // host:port of the tunnel
	// Method and Path are those of the request. A path with a placeholder is left out.
	Method, Path string
	// Refs are what [Config.Refs] has returned.
	Refs []string
	// Secrets are the names of the secrets that were used, misused or echoed.
	Secrets []string
	// Where is the part of the request or response, such as "header Authorization".
	Where string
	// Status is the status code that the client got.
	Status int
	// Sent and Received are bytes of the request's and the response's body.
	Sent, Received int64
	Duration       time.Duration
	// Err is the reason of a refusal.
	Err error
}

// Config configures an [Injector].
type Config struct {
	Secrets []Secret
	// Hosts are further hosts, in the form of a secret's, that are terminated.
	Hosts []string
	// Check decides about a request to host:port of a tunnel before anything of it is
	// sent, and before secrets are inserted; nil: it is allowed. It may read the body if it
	// replaces it by one with the same bytes. A nil Check allows all requests.
	Check func(target string, r *http.Request) *Denial
	// Refs returns the refs that a request changes if it is a push of git's. It may read the
	// body as Check may. A nil Refs returns none.
	Refs func(r *http.Request) []string
	// CA signs for the hosts of all secrets, and for Hosts.
	CA *CA
	// Dial connects to host:port of a terminated host.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Roots verify upstreams; nil are the system's.
	Roots *x509.CertPool
	// Report is called with every event, concurrently; nil ignores them.
	Report func(Event)
}

// Denial says why a request is denied.
type Denial struct {
	Reason string
	Status int
	// Answer writes the response; nil: the reason as text.
	Answer func(http.ResponseWriter)
}

// Injector inserts secrets into requests. It is safe for concurrent use.
type Injector struct {
	config  Config
	targets map[string]string // host:port to host

	mu    sync.Mutex // serialises changes of table
	table atomic.Pointer[table]

	conns    atomic.Int64  // being served
	requests chan struct{} // in progress
	bodies   chan struct{} // in which secrets are being inserted
}

// Bounds of the memory that a client can make the injector use: what a connection may
// buffer is bounded by its windows and headers, and these bound how many there are.
const (
	maxConns    = 128
	maxRequests = 256
	maxBodies   = 8
)

// table is the secrets in force. It is never changed.
type table struct {
	entries []*entry
	echo    *matcher // of all entries
}

func newTable(entries []*entry) *table {
	t := &table{entries: entries}
	var all []pair
	for _, e := range entries {
		all = append(all, e.echo...)
	}
	t.echo = newMatcher(all)
	return t
}

type entry struct {
	Secret
	targets []string
	// header, query and body replace the placeholder by the value.
	header, body []pair
	// echo replaces values, also former ones, by the placeholder.
	echo []pair
}

// New returns an injector, or all errors in the configuration.
func New(c Config) (*Injector, error) {
	if c.CA == nil || c.Dial == nil {
		return nil, errors.New("missing certificate authority or Dial")
	}
	if c.Report == nil {
		c.Report = func(Event) {}
	}
	in := &Injector{
		config: c, targets: map[string]string{},
		requests: make(chan struct{}, maxRequests), bodies: make(chan struct{}, maxBodies),
	}
	var errs []error
	var entries []*entry
	for _, s := range c.Secrets {
		e, err := newEntry(s)
		if err == nil {
			err = in.addTargets(e)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("secret %s: %w", s.Name, err))
			continue
		}
		entries = append(entries, e)
	}
	if err := in.addHosts(c.Hosts); err != nil {
		errs = append(errs, err)
	}
	errs = append(errs, checkDistinct(entries)...)
	in.table.Store(newTable(entries))
	return in, errors.Join(errs...)
}

// Check returns all errors in secrets that an injector would have.
func Check(ca *CA, secrets []Secret) error {
	_, err := New(Config{Secrets: secrets, CA: ca, Dial: (&net.Dialer{}).DialContext})
	return err
}

func newEntry(s Secret) (*entry, error) {
	value := s.Value.Reveal()
	switch {
	case len(value) < minValue:
		return nil, fmt.Errorf("value is too short to be injected: %d characters (min %d)", len(value), minValue)
	case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return nil, errors.New("invalid value: contains a control character")
	case len(s.Placeholder) < minValue || strings.Contains(value, s.Placeholder) || strings.Contains(s.Placeholder, value):
		return nil, errors.New("invalid placeholder")
	case len(s.Hosts) == 0:
		return nil, errors.New("missing hosts")
	}
	e := &entry{Secret: s}
	e.Headers = nil
	for _, h := range s.Headers {
		e.Headers = append(e.Headers, textproto.CanonicalMIMEHeaderKey(h))
	}
	e.setValue(value)
	return e, nil
}

func (e *entry) setValue(value string) {
	e.header = urlForms(e.Name, e.Placeholder, value)
	e.body = bodyForms(e.Name, e.Placeholder, value)
	e.echo = distinct(append(echoForms(e.Name, value, e.Placeholder), e.echo...))
}

func (in *Injector) addTargets(e *entry) error {
	for _, h := range e.Hosts {
		_, target, err := splitTarget(h)
		if err != nil {
			return err
		}
		e.targets = append(e.targets, target)
	}
	return in.addHosts(e.Hosts)
}

func (in *Injector) addHosts(hosts []string) error {
	for _, h := range hosts {
		host, target, err := splitTarget(h)
		if err != nil {
			return err
		}
		if !slices.Contains(in.config.CA.hosts(), host) {
			return fmt.Errorf("the certificate authority is not for %s", host)
		}
		in.targets[target] = host
	}
	return nil
}

// checkDistinct finds placeholders that cannot be told apart.
func checkDistinct(entries []*entry) []error {
	var errs []error
	for i, a := range entries {
		for _, b := range entries[i+1:] {
			if strings.Contains(a.Placeholder, b.Placeholder) || strings.Contains(b.Placeholder, a.Placeholder) {
				errs = append(errs, fmt.Errorf("secrets %s and %s have the same placeholder", a.Name, b.Name))
			}
		}
	}
	return errs
}

// splitTarget parses a host with an optional port.
func splitTarget(s string) (host, target string, err error) {
	host, port := s, "443"
	if strings.Contains(s, ":") {
		if host, port, err = net.SplitHostPort(s); err != nil {
			return "", "", fmt.Errorf("invalid host %q: %w", s, err)
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || port[0] == '0' {
			return "", "", fmt.Errorf("invalid port %q", port)
		}
	}
	host = normalHost(host)
	// The caller has checked names against the policy. Addresses have no place in
	// name constraints, and no wildcard is a host to connect to.
	if host == "" || strings.ContainsAny(host, "*:/@ ") || net.ParseIP(host) != nil {
		return "", "", fmt.Errorf("invalid host %q: expected a DNS name", s)
	}
	return host, net.JoinHostPort(host, port), nil
}

func normalHost(host string) string {
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// Hosts returns the DNS names of secrets and of other terminated hosts, for [NewCA].
func Hosts(secrets []Secret, more []string) ([]string, error) {
	var hosts []string
	for _, h := range more {
		host, _, err := splitTarget(h)
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, host)
	}
	for _, s := range secrets {
		for _, h := range s.Hosts {
			host, _, err := splitTarget(h)
			if err != nil {
				return nil, fmt.Errorf("secret %s: %w", s.Name, err)
			}
			hosts = append(hosts, host)
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts), nil
}

// Terminates reports whether tunnels to host:port can be terminated: there is a secret for
// it, or it is one of [Config.Hosts].
func (in *Injector) Terminates(target string) bool {
	_, ok := in.targets[target]
	return ok
}

// Injects reports whether there is a secret for host:port.
func (in *Injector) Injects(target string) bool {
	return slices.ContainsFunc(in.table.Load().entries, func(e *entry) bool { return slices.Contains(e.targets, target) })
}

// SetValue replaces the value of a secret for requests that begin later. Former
// values are still replaced in responses.
func (in *Injector) SetValue(name string, value secret.Value) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	old := in.table.Load().entries
	i := slices.IndexFunc(old, func(e *entry) bool { return e.Name == name })
	if i < 0 {
		return fmt.Errorf("unknown secret %s", name)
	}
	changed := old[i].Secret
	if changed.Value.Reveal() == value.Reveal() {
		return nil
	}
	changed.Value = value
	e, err := newEntry(changed)
	if err != nil {
		return fmt.Errorf("secret %s: %w", name, err)
	}
	e.targets = old[i].targets
	e.echo = distinct(append(e.echo, old[i].echo...))
	next := slices.Clone(old)
	next[i] = e
	in.table.Store(newTable(next))
	return nil
}

// storedHeaders are request headers that servers store in logs or send back. A
// placeholder is replaced in them only if the secret names them.
var storedHeaders = []string{
	"User-Agent", "Referer", "Origin", "From", "Via", "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Request-Id",
	"Accept", "Accept-Encoding", "Accept-Language", "Content-Type", "Content-Disposition", "If-Match", "If-None-Match", "Range",
	"Access-Control-Request-Headers", "Access-Control-Request-Method", "Sec-Websocket-Key", "Sec-Websocket-Protocol",
}

// inHeader reports whether the secret may be in a request header to a target.
func (e *entry) inHeader(name string) bool {
	if e.NoHeaders {
		return false
	}
	if len(e.Headers) > 0 {
		return slices.Contains(e.Headers, name)
	}
	return !slices.Contains(storedHeaders, name)
}

// refusal is a request that this package answers itself.
type refusal struct {
	kind    Kind
	status  int
	where   string
	secrets []string
	reason  string
	// hidePath keeps a path that contains a placeholder out of events.
	hidePath bool
	cause    error // nil: the request itself
	// answer writes the response; nil: reason as text.
	answer func(http.ResponseWriter)
}

func (r *refusal) Error() string { return r.reason }
func (r *refusal) Unwrap() error { return r.cause }

func misuse(e *entry, where, reason string) *refusal {
	return &refusal{
		kind: KindMisuse, status: http.StatusForbidden, where: where, secrets: []string{e.Name},
		reason: fmt.Sprintf("secret %s: %s", e.Name, reason),
	}
}
