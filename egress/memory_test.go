package egress

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// tinyLines are header lines as short as they can be, each with its own name, of
// size bytes together.
func tinyLines(size int) string {
	var b strings.Builder
	for i := 0; b.Len() < size; i++ {
		b.WriteString("h" + strconv.FormatInt(int64(i), 36) + ":\n")
	}
	return b.String()
}

// unboundedMain is Main without the bounds of the proxy's memory.
func unboundedMain(ctx context.Context, config, listen string, reload <-chan os.Signal, stdout, stderr io.Writer) error {
	cfg, err := loadConfig(config, listen)
	if err != nil {
		return err
	}
	s, err := New(cfg, stdout)
	if err != nil {
		return err
	}
	s.memory.budget, s.memory.lines, s.memory.forwards = math.MaxInt64, math.MaxInt, math.MaxInt64
	return s.main(ctx, cfg.Listen, config, reload, stderr)
}

// What an agent chooses makes no table larger: names below an entry share its rate,
// and of a name's addresses only some are kept.
func TestTablesAreBounded(t *testing.T) {
	r := newRates(1)
	p, err := NewPolicy([]string{"*.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		_ = r.take(p.Check(fmt.Sprintf("%d.example.com", i), 443).Rule)
		_ = r.take(p.Check(fmt.Sprintf("%d.example.test", i), 443).Rule)
	}
	if len(r.buckets) != 2 { // refused hosts, which only a policy that is learned counts, have one
		t.Errorf("%d rates of one entry", len(r.buckets))
	}
}

// DNS lookups wait for one another beyond a number, as long as a client waits.
func TestLookupsAreBounded(t *testing.T) {
	dns := &slowDNS{started: make(chan string, 2*maxLookups), release: make(chan struct{})}
	d := newDialer(Policy{}, dns, time.Minute)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	errs := make(chan error, 2*maxLookups)
	for i := range 2 * maxLookups {
		wg.Go(func() {
			_, err := d.resolve(ctx, fmt.Sprintf("%d.example.com", i))
			errs <- err
		})
	}
	for range maxLookups {
		<-dns.started
	}
	cancel() // those that wait give up
	for range maxLookups {
		if err := <-errs; err == nil || !strings.Contains(err.Error(), "too many lookups") {
			t.Errorf("a lookup beyond the limit: %v", err)
		}
	}
	close(dns.release)
	wg.Wait()
	if n := len(dns.started); n > 0 {
		t.Errorf("%d lookups beyond %d were made", n, maxLookups)
	}
}

// slowDNS does not answer before it is released.
type slowDNS struct {
	started chan string
	release chan struct{}
}

func (d *slowDNS) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	d.started <- host
	<-d.release
	return nil, nil
}
