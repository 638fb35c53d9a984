package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/egress/hostrule"
	"github.com/bot-bottle/bottle/manifest"

	"github.com/bot-bottle/bottle/plan"
)

func TestEgressLine(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	for want, e := range map[string]egress.Entry{
		"03:04:05  allowed  a.example:443                     CONNECT                      *.example":              {Event: "tunnel_open", Target: "a.example:443", Method: "CONNECT", Rule: "*.example"},
		"03:04:05  closed   a.example:443                     CONNECT       7 B    1.235s":                         {Event: "tunnel_close", Target: "a.example:443", Method: "CONNECT", Bytes: 7, Duration: 1234567 * time.Microsecond},
		"03:04:05  allowed  a.example:80                      GET                          http://a.example/  200": {Event: "forward_http", URL: "http://a.example/", Method: "GET", Status: 200},
		"03:04:05  closed   a.example:80                      GET         999 B       5ms  http://a.example/  200": {Event: "forward_close", URL: "http://a.example/", Method: "GET", Status: 200, Bytes: 999, Duration: 5 * time.Millisecond},
		"03:04:05  failed   a.example:443                                                  no route":               {Event: "error", Target: "a.example:443", Reason: "no route"},
		"03:04:05  refused  b.example:8080                    GET                          domain not in allowlist: b.example  http://b.example:8080/x": {
			Event: "blocked", URL: "http://b.example:8080/x", Method: "GET", Reason: "domain not in allowlist: b.example", Status: 403},
		"03:04:05  learned  b.example:443                                                  domain not in allowlist":     {Event: "would_block", Target: "b.example:443", Reason: "domain not in allowlist"},
		"03:04:05  refused  b.example:443                                                  TLS handshake for c.example": {Event: "sni_mismatch", Target: "b.example:443", SNI: "c.example"},
		"03:04:05  refused  b\ufffd[2K\ufffd.example:443                                             not a host\ufffd\ufffdx": {
			Event: "blocked", Target: "b\x1b[2K\n.example:443", Reason: "not a host\r\u202ex"},
	} {
		e.Time = at
		if got := egressLine(e); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}

// logOf yields entries and then end, if it is not nil.
func logOf(entries []egress.Entry, end error) func(func(egress.Entry, error) bool) {
	return func(yield func(egress.Entry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
		if end != nil {
			yield(egress.Entry{}, end)
		}
	}
}

func TestShowEgress(t *testing.T) {
	entries := []egress.Entry{{Event: "startup"}, {Event: "tunnel_open", Target: "a:443"}, {Event: "blocked", Target: "b:443"}}
	for _, c := range []struct {
		denied, asJSON bool
		lines          int
	}{{false, false, 2}, {true, false, 1}, {false, true, 2}, {true, true, 1}} {
		a, stdout, stderr := newApp()
		err := a.showEgress(logOf(entries, nil), c.denied, c.asJSON)
		if got := strings.Count(stdout.String(), "\n"); err != nil || got != c.lines || stderr.Len() != 0 {
			t.Errorf("%+v: %d lines, %v: %q", c, got, err, stdout)
		}
		if strings.HasPrefix(stdout.String(), "{") != c.asJSON {
			t.Errorf("%+v: %q", c, stdout)
		}
		if c.asJSON && !strings.Contains(stdout.String(), `"verdict":"refused","destination":"b:443"`) {
			t.Errorf("%+v: %q", c, stdout)
		}
	}
	a, stdout, stderr := newApp()
	if err := a.showEgress(logOf(entries[:1], nil), false, false); err != nil || stdout.Len() != 0 || stderr.String() != "Nothing has been requested.\n" {
		t.Errorf("none: %v, %q, %q", err, stdout, stderr)
	}
	if err := a.showEgress(logOf(entries, errBroken), false, false); !errors.Is(err, errBroken) {
		t.Errorf("got %v", err)
	}
	a.stdout = brokenWriter{}
	if err := a.showEgress(logOf(entries, nil), false, false); !errors.Is(err, errBroken) {
		t.Errorf("got %v", err)
	}
}

func TestSince(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"": {}, "10m": now.Add(-10 * time.Minute), "2026-01-01T00:00:00Z": time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
	} {
		if got, err := since(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	if _, err := since("yesterday", now); err == nil {
		t.Error("yesterday was accepted as a time")
	}
}

func TestShowSummary(t *testing.T) {
	a, stdout, stderr := newApp()
	a.showSummary("box", nil)
	if stderr.Len() != 0 {
		t.Errorf("no requests: %q", stderr)
	}
	a.showSummary("box", []egress.HostSummary{
		{Destination: "b.test:443", Requests: 3, Refused: 3, Bytes: 0, Scanner: "allowlist"},
		{Destination: "c.test:8080", Requests: 2, Refused: 1, Bytes: 999, Scanner: "port"},
		{Destination: "10.0.0.1:80", Requests: 2, Refused: 2, Scanner: "ssrf"},
		{Destination: "b.test:80", Requests: 1, Refused: 1, Scanner: "allowlist"},
		{Destination: "x\x1b[2J:80", Requests: 1, Refused: 1, Scanner: "allowlist"},
		{Destination: "a.test:443", Requests: 1, Bytes: 1234567},
	})
	want := `HOST          REQUESTS   BYTES    REFUSED
b.test:443    3          0 B      3
c.test:8080   2          999 B    1
10.0.0.1:80   2          0 B      2
b.test:80     1          0 B      1
x�[2J:80      1          0 B      1
a.test:443    1          1.2 MB   0
The egress proxy refused: b.test:443 (3 times), c.test:8080, 10.0.0.1:80 (2 times, private or special address, needs egress.allow_private), b.test:80, x�[2J:80.
To allow it from the next run on:
  bottle allow box b.test --save
  bottle allow box c.test:8080 --save
`
	if stderr.String() != want || stdout.Len() != 0 {
		t.Errorf("got\n%s\nwant\n%s", stderr, want)
	}
	a, _, stderr = newApp()
	a.manifest = "my own.yaml"
	a.showSummary("box", []egress.HostSummary{{Destination: "b.test:443", Requests: 1, Refused: 1, Scanner: "allowlist"}})
	if want := `  bottle --manifest "my own.yaml" allow box b.test --save`; !strings.Contains(stderr.String(), want) {
		t.Errorf("no %s in %s", want, stderr)
	}
	a, _, stderr = newApp()
	a.showSummary("box", make([]egress.HostSummary, 100))
	if lines := strings.Count(stderr.String(), "\n"); lines != maxSummary+2 || !strings.Contains(stderr.String(), "and 85 more") {
		t.Errorf("%d lines: %s", lines, stderr)
	}
}

// Of many refused hosts, a few are listed, each with its own command.
func TestShowRefusedBounded(t *testing.T) {
	a, _, stderr := newApp()
	var hosts []egress.HostSummary
	for i := range 100 {
		hosts = append(hosts, egress.HostSummary{Destination: fmt.Sprintf("h%d.test:443", i), Requests: 1, Refused: 1, Scanner: "allowlist"})
	}
	a.showSessionRefused("box", hosts)
	for i := range maxRefused {
		if want := fmt.Sprintf("  bottle allow box h%d.test\n", i); !strings.Contains(stderr.String(), want) {
			t.Errorf("no %q in %s", want, stderr)
		}
	}
	if n := strings.Count(stderr.String(), "\n"); n != maxRefused+2 || !strings.Contains(stderr.String(), "and 90 more") {
		t.Errorf("%d lines: %s", n, stderr)
	}
}

func TestRefusalTitle(t *testing.T) {
	for want, e := range map[string]egress.Entry{
		"refused: a.test:443 - bottle allow box a.test":                                  {Target: "a.test:443", Scanner: "allowlist"},
		"refused: a.test:8080 - bottle allow box a.test:8080":                            {URL: "http://a.test:8080/x", Scanner: "port"},
		"refused: 10.0.0.1:443 (private or special address, needs egress.allow_private)": {Target: "10.0.0.1:443", Scanner: "ssrf"},
		"refused: a\ufffd]0;x\ufffd:443":                                                 {Target: "a\x1b]0;x\a:443", Scanner: "allowlist"},
		"refused: " + strings.Repeat("é", maxTitleText-len("refused: ")-1) + "…":         {Target: strings.Repeat("é", 500), Scanner: "allowlist"},
		"refused: (no host) (malformed request)":                                         {Scanner: "parser"},
	} {
		if got := refusalTitle("box", e); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}

func TestDecimal(t *testing.T) {
	for want, n := range map[string]int64{"0 B": 0, "999 B": 999, "1.0 kB": 1000, "1.0 MB": 999_999, "2.1 GB": 2_147_483_648, "9.2 EB": 1<<63 - 1} {
		if got := decimal(n); got != want {
			t.Errorf("decimal(%d) = %s, want %s", n, got, want)
		}
	}
}

func TestShowLearned(t *testing.T) {
	dir := t.TempDir()
	plan := &plan.Plan{Manifest: filepath.Join(dir, "bottle.yaml"), Bottle: "dev"}
	hosts := []egress.HostSummary{{Destination: "a.test:443", Learned: 1, Scanner: "allowlist"}}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(plan.Manifest, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	shown := func(hosts []egress.HostSummary) string {
		a, stdout, stderr := newApp()
		a.showLearned(plan, hosts)
		if stdout.Len() > 0 {
			t.Errorf("standard output: %q", stdout)
		}
		return stderr.String()
	}
	write("version: 1\nbottles:\n  dev: {}\nagents: {x: {bottle: dev}}\n")
	want := "The policy would have refused some of these requests. To allow them, run patch -p1 in " + dir + ` with this patch:
--- a/bottle.yaml
+++ b/bottle.yaml
@@ -1,4 +1,4 @@
 version: 1
 bottles:
-  dev: {}
+  dev: {egress: {allow: [a.test]}}
 agents: {x: {bottle: dev}}
`
	if got := shown(hosts); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := shown(nil); got != "" {
		t.Errorf("no entries: %q", got)
	}
	// bottle does not edit aliases.
	write("version: 1\nbottles:\n  dev: {egress: {allow: &list [b.test], allow_private: *list}}\nagents: {x: {bottle: dev}}\n")
	if got := shown(hosts); !strings.Contains(got, "add this to "+plan.Manifest+" by hand (") || !strings.Contains(got, "\n        - \"a.test\"\n") {
		t.Errorf("by hand: %s", got)
	}
	write("version: 1\nbottles:\n  dev: {egress: {allow: [a.test]}}\nagents: {x: {bottle: dev}}\n")
	if got := shown(hosts); got != "" {
		t.Errorf("already in the manifest: %q", got)
	}
}

// TestShowLearnedRules: the proposal is one that the manifest accepts.
func TestShowLearnedRules(t *testing.T) {
	log := []egress.Entry{
		{Event: egress.EventTunnelOpen, Target: "a.test:443"},
		{Event: egress.EventRequest, Target: "a.test:443", Method: "GET", URL: "https://a.test:443/v1/x y", Status: 200, Bytes: 5},
		{Event: egress.EventRequest, Target: "a.test:443", Method: "POST", URL: "https://a.test:443/me/x.git/git-upload-pack", Status: 200},
		{Event: egress.EventRequest, Target: "b.test:8443", Method: "PUT", URL: "https://b.test:8443/x", Status: 200},
		{Event: egress.EventWouldBlock, Target: "b.test:8443", Scanner: egress.ScannerRules},
		{Event: egress.EventRequest, Target: "c.test:443", Method: "PUT", URL: "https://c.test:443/x", Status: 200},
	}
	hosts, err := egress.Summarize(func(yield func(egress.Entry, error) bool) {
		for _, e := range log {
			if !yield(e, nil) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	a, _, stderr := newApp()
	have := []hostrule.Rule{{Host: "b.test:8443", Paths: []string{"/y"}}, {Host: "c.test", Paths: []string{"/x"}}}
	a.showLearned(&plan.Plan{Egress: manifest.Egress{Rules: have}}, hosts)
	rules := []string{
		"{host: a.test, git: read, repos: [me/x]}", `{host: a.test, methods: [GET], paths: ["/v1/x y"]}`, `{host: "b.test:8443", methods: [PUT], paths: ["/x"]}`,
	}
	if want := textLearnedRules + "\n  - " + strings.Join(rules, "\n  - ") + "\n"; stderr.String() != want {
		t.Errorf("got\n%s\nwant\n%s", stderr, want)
	}
	text := "version: 1\nbottles: {dev: {egress: {allow: [" + strings.Join(rules, ", ") + "]}}}\nagents: {x: {bottle: dev}}\n"
	if _, err := manifest.Parse("bottle.yaml", []byte(text)); err != nil {
		t.Error(err)
	}
	a, _, stderr = newApp()
	a.showSummary("box", hosts)
	if want := "a.test:443    1          5 B     0         2\n"; !strings.Contains(stderr.String(), want) || !strings.Contains(stderr.String(), "READ") {
		t.Errorf("no %q in\n%s", want, stderr)
	}
}
