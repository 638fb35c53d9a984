package egress

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// maxKeptTTL bounds how long addresses are kept, whatever their TTL is.
	maxKeptTTL = 5 * time.Minute
	// maxKeptNames bounds the memory: the names that match a wildcard are unlimited.
	maxKeptNames = 1000
)

// keepingResolver is Go's resolver, and keeps the addresses of a name for their TTL: the
// lookups of A and AAAA records, and of the hosts file, take longer than all else in the
// start of a tunnel. It keeps neither failures, which may pass, nor the hosts file's
// addresses, which have no TTL. Who uses the addresses checks them at each dial.
type keepingResolver struct {
	resolver net.Resolver
	now      func() time.Time

	mu   sync.Mutex
	kept map[string]keptAddrs
}

type keptAddrs struct {
	addrs   []netip.Addr
	expires time.Time
}

// dialFunc connects to a DNS server.
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// newResolver returns a resolver that connects to DNS servers with dial.
func newResolver(dial dialFunc) *keepingResolver {
	return &keepingResolver{
		now:  time.Now,
		kept: map[string]keptAddrs{},
		resolver: net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dial(ctx, network, address)
			ttl, ok := ctx.Value(ttlKey{}).(*answerTTL)
			if err != nil || !ok {
				return conn, err
			}
			// net.Resolver frames messages as in TCP unless the connection is a PacketConn.
			if udp, ok := conn.(*net.UDPConn); ok {
				return &answerConn{UDPConn: udp, ttl: ttl}, nil
			}
			ttl.add(0)
			return conn, nil
		}},
	}
}

// LookupNetIP implements [Resolver].
func (r *keepingResolver) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	key, now := network+" "+host, r.now()
	r.mu.Lock()
	k, ok := r.kept[key]
	r.mu.Unlock()
	if ok && now.Before(k.expires) {
		return slices.Clone(k.addrs), nil
	}
	var ttl answerTTL
	addrs, err := r.resolver.LookupNetIP(context.WithValue(ctx, ttlKey{}, &ttl), network, host)
	if err != nil {
		return nil, err
	}
	if d := ttl.get(); d > 0 {
		r.keep(key, keptAddrs{addrs: slices.Clone(addrs), expires: now.Add(min(d, maxKeptTTL))})
	}
	return addrs, nil
}

// keep stores the addresses of a name. If there are too many, those go that have expired,
// or else any.
func (r *keepingResolver) keep(key string, k keptAddrs) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.kept) >= maxKeptNames {
		now := r.now()
		for name, old := range r.kept {
			if !now.Before(old.expires) {
				delete(r.kept, name)
			}
		}
	}
	for name := range r.kept {
		if len(r.kept) < maxKeptNames {
			break
		}
		delete(r.kept, name)
	}
	r.kept[key] = k
}

// ttlKey is the context key of a lookup's *answerTTL.
type ttlKey struct{}

// answerTTL is the shortest TTL in the answers to a lookup. Lookups of A and AAAA records
// are concurrent.
type answerTTL struct {
	mu    sync.Mutex
	known bool
	ttl   time.Duration
}

func (t *answerTTL) add(ttl time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.known || ttl < t.ttl {
		t.known, t.ttl = true, ttl
	}
}

// get returns 0 if there was no answer.
func (t *answerTTL) get() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ttl
}

// answerConn is a connection to a DNS server that reads the TTLs of what it receives.
type answerConn struct {
	*net.UDPConn
	ttl *answerTTL
}

// Read reads a message.
func (c *answerConn) Read(p []byte) (int, error) {
	n, err := c.UDPConn.Read(p)
	c.ttl.addAnswers(p[:n])
	return n, err
}

// addAnswers adds the TTLs of a message's answers. Whether it answers the question is for
// net.Resolver to decide: other messages can only shorten the time.
func (t *answerTTL) addAnswers(message []byte) {
	var m dnsmessage.Parser
	if _, err := m.Start(message); err != nil || m.SkipAllQuestions() != nil {
		return
	}
	for {
		h, err := m.AnswerHeader()
		if err != nil || m.SkipAnswer() != nil {
			return
		}
		t.add(time.Duration(h.TTL) * time.Second)
	}
}
