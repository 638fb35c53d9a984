package egress

import (
	"context"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"testing"
)

// recordingDNS records the names that are looked up.
type recordingDNS struct {
	fakeDNS
	mu    sync.Mutex
	names []string
}

func (d *recordingDNS) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	d.mu.Lock()
	d.names = append(d.names, host)
	d.mu.Unlock()
	return d.fakeDNS.LookupNetIP(ctx, network, host)
}

// Names that the policy does not allow are not resolved: a lookup alone would send what
// is in the name to whoever serves its domain.
func TestRefusedNamesAreNotResolved(t *testing.T) {
	dns := &recordingDNS{fakeDNS: testDNS}
	p := startProxy(t, Config{Resolver: dns, Entries: Entries{
		Allow: []string{"private.example", "*.wild.example"}, Deny: []string{"secret.wild.example"},
	}})
	for _, request := range []string{
		"CONNECT secret.refused.example:443 HTTP/1.1\r\nHost: x\r\n\r\n",
		"CONNECT secret.wild.example:443 HTTP/1.1\r\nHost: x\r\n\r\n",
		"CONNECT secret.private.example:443 HTTP/1.1\r\nHost: x\r\n\r\n",
		"CONNECT private.example:22 HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET http://secret.refused.example/ HTTP/1.1\r\nHost: secret.refused.example\r\n\r\n",
		"GET http://private.example:8080/ HTTP/1.1\r\nHost: private.example:8080\r\n\r\n",
	} {
		if res, body, _ := p.raw(t, http.MethodGet, request); res.StatusCode != http.StatusForbidden {
			t.Errorf("%q: %s %s", request, res.Status, body)
		}
	}
	if len(dns.names) > 0 {
		t.Errorf("resolved %q", dns.names)
	}
	// Control: an allowed name is resolved, and then refused for its address.
	if res, body, _ := p.raw(t, http.MethodConnect, "CONNECT private.example:443 HTTP/1.1\r\nHost: x\r\n\r\n"); res.StatusCode != http.StatusForbidden {
		t.Errorf("control: %s %s", res.Status, body)
	}
	if !slices.Equal(dns.names, []string{"private.example."}) {
		t.Errorf("control: resolved %q", dns.names)
	}
}
