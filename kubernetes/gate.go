package kubernetes

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/bot-bottle/bottle/netns"
)

// Gate is what must hold before the agent starts.
type Gate struct {
	Proxy  string   // host:port
	Closed []string // host:port of what must not be reached
	// Dial bounds one attempt, and Pause is the time between two rounds; 0: the defaults.
	Dial, Pause time.Duration
}

const (
	gateDial  = 2 * time.Second
	gatePause = 500 * time.Millisecond
)

// Wait returns when the proxy answers and nothing of Closed does. A cluster needs some time
// to enforce a NetworkPolicy on a new pod, and one that never does keeps the agent from
// starting. Out reports what is missing, whenever that changes.
//
// A refused connection counts as closed: several enforcers reject packets in the name of
// their destination. Closed therefore contains addresses that answer where nothing is
// enforced.
func (g Gate) Wait(ctx context.Context, out io.Writer) error {
	for _, addr := range append([]string{g.Proxy}, g.Closed...) {
		if strings.Contains(addr, "$(") {
			return fmt.Errorf("the address %s was not expanded: the Service must exist before the pod, so create the pod again", addr)
		}
		if _, err := netip.ParseAddrPort(addr); err != nil {
			return fmt.Errorf("invalid address %q: %w", addr, err)
		}
	}
	if g.Dial == 0 {
		g.Dial = gateDial
	}
	if g.Pause == 0 {
		g.Pause = gatePause
	}
	last := ""
	for {
		why := g.missing(ctx)
		if err := ctx.Err(); err != nil {
			return err
		}
		if why == "" {
			_, err := fmt.Fprintln(out, "the proxy answers, and nothing else can be reached")
			return err
		}
		if why != last {
			if _, err := fmt.Fprintln(out, "waiting:", why); err != nil {
				return err
			}
			last = why
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(g.Pause):
		}
	}
}

// missing says what keeps the agent from starting; empty: nothing.
func (g Gate) missing(ctx context.Context) string {
	open := make([]bool, len(g.Closed))
	var proxy error
	var wg sync.WaitGroup
	wg.Go(func() { proxy = g.askProxy(ctx) })
	for i, addr := range g.Closed {
		wg.Go(func() {
			d := net.Dialer{Timeout: g.Dial}
			conn, err := d.DialContext(ctx, "tcp", addr)
			if err == nil {
				_ = conn.Close()
			}
			open[i] = err == nil
		})
	}
	wg.Wait()
	var reached []string
	for i, addr := range g.Closed {
		if open[i] {
			reached = append(reached, addr)
		}
	}
	switch {
	case len(reached) > 0:
		return "no NetworkPolicy is enforced on this pod yet: it reaches " + strings.Join(reached, ", ")
	case proxy != nil:
		return "the proxy does not answer"
	}
	return ""
}

func (g Gate) askProxy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, g.Dial)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+g.Proxy+"/health", nil)
	if err != nil {
		return err
	}
	// Never through a proxy, and over a new connection.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", res.Status)
	}
	return nil
}

// Wall leaves the pod's network one destination, the address of the proxy.
func Wall(proxy string) error {
	addr, err := netip.ParseAddr(proxy)
	if err != nil {
		return fmt.Errorf("the address of the proxy: %w", err)
	}
	return netns.Wall(addr)
}
