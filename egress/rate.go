package egress

import (
	"fmt"
	"net/http"
	"sync"
	"time"
)

// rates counts the requests that each entry of the policy lets through: entries
// are few, hosts below a *.name may be without end.
type rates struct {
	perMinute int
	now       func() time.Time

	mu      sync.Mutex
	buckets map[string]*bucket
}

// bucket holds the requests that may still be made; it fills by a minute's worth
// in a minute, and holds no more.
type bucket struct {
	left   float64
	filled time.Time
}

func newRates(perMinute int) *rates {
	return &rates{perMinute: perMinute, now: time.Now, buckets: map[string]*bucket{}}
}

// take counts one request of an entry; an error is that it is one too many.
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
			reason: fmt.Sprintf("more than %d requests a minute to %s", r.perMinute, rule),
		}
	}
	b.left--
	return nil
}

// keep forgets the entries that a new policy does not have.
func (r *rates) keep(p Policy) {
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
