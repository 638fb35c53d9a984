// Command verdicts sends more than 180 requests to a proxy and prints the
// results. "go run ./scripts/verdicts" tests the built-in proxy against a table;
// with --proxy URL it also tests a real pipelock against the table and the
// differences that are known of it (differences.go), or with --same a built-in proxy
// that runs elsewhere, which must not differ.
//
// The other proxy needs the same policy and names: --write DIR writes
// pipelock.yaml, for --version, proxy.json and a hosts file for it. The upstream servers
// listen on --upstream, an address of this machine that the proxy can reach, on
// ports such as 22, 80 and 443, which requires root. No traffic leaves the machine.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"golang.org/x/sync/errgroup"

	"github.com/bot-bottle/bottle/egress"
)

func main() { os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr)) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("verdicts", flag.ContinueOnError)
	flags.SetOutput(stderr)
	proxy := flags.String("proxy", "", "URL of another proxy to test, such as http://127.0.0.1:8888")
	upstream := flags.String("upstream", "127.7.7.7", "address of this machine for the upstream servers")
	same := flags.Bool("same", false, "the other proxy is a built-in one")
	write := flags.String("write", "", "write pipelock.yaml, proxy.json and hosts to this directory and exit")
	version := flags.String("version", "2.3.0", "version of pipelock to write pipelock.yaml for")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	var differ int
	var err error
	if *write != "" {
		err = writeFiles(*write, *upstream, *version)
	} else {
		differ, err = verify(ctx, *proxy, *upstream, *same, stdout)
	}
	switch {
	case err != nil:
		_, _ = fmt.Fprintln(stderr, "verdicts:", err)
		return 2
	case differ > 0:
		_, _ = fmt.Fprintln(stderr, "verdicts:", differ, "differ")
		return 1
	}
	return 0
}

func writeFiles(dir, upstream, version string) error {
	addr, err := netip.ParseAddr(upstream)
	if err != nil {
		return err
	}
	return setup{upstream: addr}.write(dir, version)
}

// verify returns the number of unexpected verdicts: of the built-in proxy, and of
// another one if there is one.
func verify(ctx context.Context, proxy, upstream string, same bool, out io.Writer) (int, error) {
	addr, err := netip.ParseAddr(upstream)
	if err != nil {
		return 0, err
	}
	s := setup{upstream: addr}
	stop, err := s.serve(ctx)
	if err != nil {
		return 0, err
	}
	defer stop()
	builtin, end, err := s.builtin(ctx)
	if err != nil {
		return 0, err
	}
	defer end()
	other := ""
	if proxy != "" {
		u, err := url.Parse(proxy)
		if err != nil || u.Host == "" {
			return 0, fmt.Errorf("invalid --proxy %q: expected a URL such as http://127.0.0.1:8888", proxy)
		}
		other = u.Host
	}
	expect := expected
	if same {
		expect = func(r request) (want, why string) { return kind(r.want), "" }
	}
	return compare(table(addr.String()), builtin, other, expect, out)
}

// compare sends the requests to both proxies; expect is what the other one should answer.
func compare(requests []request, builtin, other string, expect func(request) (want, why string), out io.Writer) (int, error) {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	differ := 0
	ours, all := sendAll(requests, builtin), []string(nil)
	if other != "" {
		all = sendAll(requests, other)
	}
	for i, r := range requests {
		line, note := fmt.Sprintf("%s\t%s", r.name, ours[i]), ""
		if ours[i] != r.want {
			note = "\tDIFFERS: expected " + r.want
		}
		if other != "" {
			line += "\t" + all[i]
			want, why := expect(r)
			if kind(all[i]) != want {
				note += "\tDIFFERS: expected " + want + why
			} else {
				line += why
			}
		}
		if note != "" {
			differ++
		}
		_, _ = fmt.Fprintln(t, line+note)
	}
	_, _ = fmt.Fprintf(t, "%d requests, %d differ\n", len(requests), differ)
	return differ, t.Flush()
}

// concurrency is the number of concurrent requests: some wait for a timeout of
// the proxy.
const concurrency = 8

func sendAll(requests []request, proxy string) []string {
	out := make([]string, len(requests))
	var g errgroup.Group
	g.SetLimit(concurrency)
	for i, r := range requests {
		g.Go(func() error {
			out[i] = r.send(proxy)
			return nil
		})
	}
	_ = g.Wait() // always nil: failures are verdicts
	return out
}

// kind is what two proxies must agree on: whether the server was reached. The
// wording and status of a refusal may differ.
func kind(verdict string) string {
	if verdict == allowed {
		return allowed
	}
	return refused
}

const refused = "refused"

// setup is the policy, the names and the upstream servers.
type setup struct{ upstream netip.Addr }

// Hosts below *.wild.verdict.test: one with a random label, as cloud services have
// them, and one that is denied.
const (
	randomHost = "k7xq2m9w4z1r8v3t6y5u0p-h3jd6fs.wild.verdict.test"
	deniedHost = "denied.wild.verdict.test"
)

var names = []string{
	"api.verdict.test", "wild.verdict.test", "a.wild.verdict.test", "a.b.wild.verdict.test", "port.verdict.test",
	"git.verdict.test", "git2.verdict.test", "other.verdict.test", "evilapi.verdict.test", "api.verdict.test.evil.test",
	"evilwild.verdict.test", "xn--bcher-kva.verdict.test", "range.verdict.test", randomHost, deniedHost, "sub.api.verdict.test", "tls.verdict.test", "raw.verdict.test",
}

func (s setup) entries() egress.Entries {
	return egress.Entries{
		Allow: []string{
			"api.verdict.test", "*.wild.verdict.test", "port.verdict.test:8443", "bücher.verdict.test", s.upstream.String(),
			"inside.verdict.test", "meta.verdict.test", "169.254.169.254", "10.99.0.10", "lost.verdict.test",
			fmt.Sprintf("tls.verdict.test:%d", portTLS), fmt.Sprintf("tls.verdict.test:%d", portTLSHalf), "range.verdict.test:8442-8444",
		},
		Deny: []string{deniedHost},
		SSH: []string{
			"git.verdict.test", "git2.verdict.test:2222", fmt.Sprintf("raw.verdict.test:%d", portHalf),
			fmt.Sprintf("raw.verdict.test:%d", portEnds), fmt.Sprintf("raw.verdict.test:%d", portWeb),
		},
		// pipelock needs the names as well as the address.
		AllowPrivate: append([]string{s.upstream.String()}, names...),
	}
}

// LookupNetIP implements egress.Resolver for the built-in proxy.
func (s setup) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	host = strings.TrimSuffix(host, ".")
	for _, n := range names {
		if n == host {
			return []netip.Addr{s.upstream}, nil
		}
	}
	if a, ok := special[host]; ok {
		return []netip.Addr{netip.MustParseAddr(a)}, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

var special = map[string]string{"inside.verdict.test": "10.99.0.10", "meta.verdict.test": "169.254.169.254"}

func (s setup) write(dir, version string) error {
	policy, err := s.entries().Policy()
	if err != nil {
		return err
	}
	conf, err := policy.Render(version)
	if err != nil {
		return err
	}
	own, err := json.MarshalIndent(egress.Config{Entries: s.entries(), HeaderTimeout: egress.Duration(headTime)}, "", "  ")
	if err != nil {
		return err
	}
	var hosts strings.Builder
	for _, n := range names {
		_, _ = fmt.Fprintf(&hosts, "%s\t%s\n", s.upstream, n)
	}
	for n, a := range special {
		_, _ = fmt.Fprintf(&hosts, "%s\t%s\n", a, n)
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "pipelock.yaml"), conf, 0o644),
		os.WriteFile(filepath.Join(dir, "proxy.json"), own, 0o644),
		os.WriteFile(filepath.Join(dir, "hosts"), []byte(hosts.String()), 0o644),
	)
}

func (s setup) builtin(ctx context.Context) (addr string, stop func(), err error) {
	p, err := egress.New(egress.Config{Entries: s.entries(), Resolver: s, HeaderTimeout: egress.Duration(headTime)}, io.Discard)
	if err != nil {
		return "", nil, err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = p.Serve(ctx, l) // a failure shows in the verdicts
	}()
	return l.Addr().String(), func() { cancel(); <-done }, nil
}
