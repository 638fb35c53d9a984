package bottle

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/proxy"
	"github.com/bot-bottle/bottle/session"
)

// streams runs slow and large downloads, each through its own tunnel. It prints what
// arrives incomplete, and the number of different contents.
const streams = `cd /tmp
for i in $(seq 30); do (curl -sS -m 200 -o slow.$i 'https://allowed.test/slow?ms=50&n=250' && [ "$(wc -l <slow.$i)" = 250 ] || echo "slow $i") & done
for i in 1 2 3 4; do (curl -sS -m 200 --limit-rate 2M -o large.$i 'https://allowed.test/bytes?n=24000000' && [ "$(wc -c <large.$i)" = 24000000 ] || echo "large $i") & done
wait
cksum large.* | cut -d' ' -f1 | sort -u | wc -l`

// TestPolicyUnderLoad repeatedly changes the policy of a bottle whose agent transfers
// data through open tunnels: each change is in force when it returns, and no tunnel is
// closed, not even to a host that is not allowed any more.
func TestPolicyUnderLoad(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	b := launchSimple(t, e)
	seen := labtest.World(t)
	var streamed bytes.Buffer
	s, err := e.Exec(context.WithoutCancel(t.Context()), b.Name, session.Config{Command: []string{"bash", "-c", streams}, Stdout: &streamed, Stderr: &streamed})
	if err != nil {
		t.Fatal(err)
	}
	const tunnels = 34
	waitFor(t, "all tunnels", func() bool { return requestsFor(seen(), "allowed.test") >= tunnels })
	ended := make(chan error, 1)
	go func() {
		code, err := s.Wait()
		if code != 0 {
			t.Errorf("streams: exit code %d", code)
		}
		ended <- err
	}()
	status := func(host string) string {
		out, _ := output(t, e, b.Name, "curl", "-sS", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}", "http://"+host+"/")
		return out
	}
	changes, during := 0, 0
	for over := false; !over && !t.Failed(); {
		for _, c := range []struct {
			change func(context.Context, string, string) (proxy.PolicyChange, error)
			host   string
			want   string
		}{{e.proxies.Deny, "allowed.test", ""}, {e.proxies.Allow, "refused.test", ""}, {e.proxies.Deny, "refused.test", "403"}, {e.proxies.Allow, "allowed.test", "200"}} {
			done, err := c.change(t.Context(), b.Name, c.host)
			if err != nil || !done.Changed {
				t.Fatalf("change %d: %+v, %v", changes, done, err)
			}
			changes++
			if c.want == "" {
				continue
			}
			if got := status(c.host); got != c.want {
				t.Errorf("change %d: %s answers %s, want %s", changes, c.host, got, c.want)
			}
		}
		select {
		case err := <-ended:
			if over = true; err != nil {
				t.Error(err)
			}
		default:
			during = changes
		}
	}
	t.Logf("%d tunnels under %d changes of the policy", tunnels, during)
	if during < 8 {
		t.Errorf("only %d changes while tunnels were open", during)
	}
	if got := strings.TrimSpace(streamed.String()); got != "1" {
		t.Errorf("incomplete downloads and number of different contents: %q, want 1", got)
	}
}
