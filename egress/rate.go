package egress

import (
	"fmt"
	"net/http"
	"sync"
	"time"
)

// rates limits the requests that each policy entry allows. It counts by entry,
// not by host: an agent can name any number of hosts below *.name.
type rates struct {
	perMinute int
	now       func() time.Time

	mu      sync.Mutex
	buckets map[string]*bucket
}

// bucket is a token bucket that holds, and refills in a minute, one minute's
// worth of requests.
type bucket struct {
	left   float64
	filled time.Time
}

func newRates(perMinute int) *rates {
	return &rates{perMinute: perMinute, now: time.Now, buckets: map[string]*bucket{}}
}

// take counts one request of an entry and refuses it if the limit is exceeded.
func (r *rates) take(rule string) *refusalError {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, full := r.now(), float64(r.perMinute)
	b := r.buckets[rule]
	if b == nil {
		b = &bucket{left: full, filled: now}
		r.buckets[rule] = b
	}
	b.left = min(full, b.left+now.Sub(b.filled).Minutes()*full)
	b.filled = now
	if b.left < 1 {
		return &refusalError{
			status: http.StatusTooManyRequests, scanner: "ratelimit", rule: rule,
			reason: fmt.Sprintf("more than %d requests per minute to %s", r.perMinute, rule),
		}
	}
	b.left--
	return nil
}

// prune removes entries that a new policy does not contain.
func (r *rates) prune(p Policy) {
	known := map[string]bool{"": true}
	for _, rule := range p.Allow {
		known[rule.String()] = true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for rule := range r.buckets {
		if !known[rule] {
			delete(r.buckets, rule)
		}
	}
}
