package supply

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/policy"
)

// Network is the network of a build's steps.
type Network struct {
	// Host: steps use the host's network.
	Host bool
	// Allow lists what steps reach through their proxy, in the form of egress.allow in a
	// manifest; nil: every public host.
	Allow []string
}

// bounded returns the network within the administrator's policy: a build that lists no
// hosts reaches those that the policy allows at most.
func (n Network) bounded(rules *policy.Rules) Network {
	if n.Allow == nil {
		n.Allow = rules.BuildHosts()
	}
	return n
}

// stepProxy returns the egress proxy of a build's steps, and a function that returns what
// it has refused.
func stepProxy(n Network, never []string) (serve func(context.Context, net.Listener) error, refused func() []string, err error) {
	cfg := egress.Config{Entries: egress.Entries{Allow: n.Allow, Deny: slices.Concat(never, ownAddresses())}, Learn: n.Allow == nil}
	log := &refusals{seen: map[string]bool{}}
	if _, err := egress.New(cfg, log); err != nil {
		return nil, nil, fmt.Errorf("egress of the build: %w", err)
	}
	return func(ctx context.Context, l net.Listener) error {
		s, err := egress.New(cfg, log)
		if err != nil {
			return err
		}
		return s.Serve(ctx, l)
	}, log.list, nil
}

// ownAddresses are the host's addresses, from which the proxy connects: a step would
// otherwise reach a service of the host that its firewall hides from others.
func ownAddresses() []string {
	var out []string
	addrs, _ := net.InterfaceAddrs() // special addresses are refused anyway
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			out = append(out, n.IP.String())
		}
	}
	return out
}

// maxRefusals is how many refused destinations of a build are remembered.
const maxRefusals = 20

// refusals reads the log of a proxy for what it has refused.
type refusals struct {
	mu   sync.Mutex
	seen map[string]bool
}

// Write implements io.Writer: each call is one line of the log.
func (r *refusals) Write(line []byte) (int, error) {
	var e struct{ Event, Target, URL, Reason string }
	if json.Unmarshal(bytes.TrimSpace(line), &e) != nil || e.Event != egress.EventBlocked {
		return len(line), nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if text := strings.TrimSpace(e.Target + e.URL + ": " + e.Reason); len(r.seen) < maxRefusals {
		r.seen[text] = true
	}
	return len(line), nil
}

func (r *refusals) list() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.seen))
}
