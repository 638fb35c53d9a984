package main

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

func TestDemo(t *testing.T) {
	state := startWorld(t)
	for _, c := range []struct {
		name  string
		allow []string
		env   []string
		code  int
		want  []string
	}{
		{"isolated", []string{"allowed.test"}, nil, 0, []string{
			`(?m)^links .*\beth0 10\.77\.0\.2/30`,
			`(?m)^routes +10\.77\.0\.0/30 on eth0$`,
			`(?m)^ok +https://allowed\.test/ +200 OK: hello from allowed\.test$`,
			`(?m)^ok +http://allowed\.test/ +200 OK: hello from allowed\.test$`,
			`(?m)^refused +https://refused\.test/ +403 Forbidden: .*refused\.test`,
			`(?m)^refused +http://refused\.test/ +403 Forbidden: .*refused\.test`,
			`(?m)^unreachable +tcp 198\.51\.101\.10:443 without the proxy +.*network is unreachable$`,
			`(?m)^unreachable +dns allowed\.test at 198\.51\.101\.53:53 +.*network is unreachable$`,
			`all checks passed\n$`,
		}},
		{"the allowed host is refused", nil, nil, 1, []string{
			`FAILED: https://allowed\.test/: got refused, want ok 200; http://allowed\.test/: got refused, want ok 200\n$`}},
		{"the refused host is allowed", []string{"*.test"}, nil, 1, []string{
			`FAILED: https://refused\.test/: got ok, want refused 403; http://refused\.test/: got ok, want refused 403\n$`}},
		{"the proxy can be bypassed", []string{"allowed.test"}, []string{routeVar + "=1"}, 1, []string{
			`(?m)^routes +default on eth0, `,
			`FAILED: tcp 198\.51\.101\.10:443 without the proxy: got ok, want unreachable; dns allowed\.test at 198\.51\.101\.53:53: got ok, want unreachable\n$`}},
		{"no proxy", []string{"allowed.test"}, []string{"HTTPS_PROXY=", "HTTP_PROXY="}, 1, []string{
			`FAILED: https://allowed\.test/: got unreachable, want ok 200; `}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newAgent(t, state, c.env)
			startProxy(t, c.allow...)
			code, out := a.finish(t)
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			for _, want := range c.want {
				if !regexp.MustCompile(want).MatchString(out) {
					t.Errorf("no match for %s", want)
				}
			}
			if t.Failed() {
				t.Log(out)
			}
		})
	}
}

// TestProbes runs each probe with and without a route to the world.
func TestProbes(t *testing.T) {
	state := startWorld(t)
	for _, c := range []struct {
		args           string
		routed, closed string // exit code and beginning of the output, with and without a route
	}{
		{"get https://allowed.test/bytes?n=3", "0 ok 200 OK abc", "0 ok 200 OK abc"},
		{"get https://private.test/", "1 refused 403 Forbidden CONNECT blocked:", "1 refused 403 Forbidden CONNECT blocked:"},
		{"get http://allowed.test/redirect?to=/x", "0 ok 302 Found", "0 ok 302 Found"},
		{"get http://allowed.test/nothing", "1 refused 404 Not Found 404 page not found", "1 refused 404 Not Found"},
		{"-direct get http://169.254.169.254/", "0 ok 200 OK hello from meta.test", "1 unreachable dial tcp 169.254.169.254:80: connect: network is unreachable"},
		{"dial 198.51.101.66:22", "0 ok connected: victim 198.51.101.66:22", "1 unreachable dial tcp 198.51.101.66:22: connect: network is unreachable"},
		{"dial 198.51.101.66:7", "1 refused dial tcp 198.51.101.66:7: connect: connection refused", "1 unreachable"},
		{"dial 198.51.101.10:80 hello", "0 ok connected", "1 unreachable"},
		{"udp 10.99.0.10:9999 secret", "0 ok reply: victim 10.99.0.10:9999", "1 unreachable dial udp 10.99.0.10:9999: connect: network is unreachable"},
		{"-timeout 300ms get https://allowed.test/slow?ms=60000&n=1", "1 unreachable", "1 unreachable"},
		{"fly away", "2 demoagent: unknown command fly with 1 arguments (demoagent --help)", "2 demoagent: unknown command fly"},
		{"--fly", "2 flag provided but not defined: -fly", "2 flag provided but not defined: -fly"},
	} {
		for env, want := range map[string]string{routeVar + "=1": c.routed, "": c.closed} {
			t.Run(strings.TrimSpace(c.args+" "+env), func(t *testing.T) {
				a := newAgent(t, state, []string{env}, strings.Fields(c.args)...)
				startProxy(t, "allowed.test")
				code, out := a.finish(t)
				if got := words(code, out); !strings.HasPrefix(got, want) {
					t.Errorf("got %q, want %q", got, want)
				}
			})
		}
	}
}

// words returns the exit code and the output without the target and the padding
// between columns.
func words(code int, out string) string {
	out = regexp.MustCompile(`^(ok|refused|unreachable) +((tcp|udp) )?\S+ +`).ReplaceAllString(out, "$1 ")
	return fmt.Sprint(code, " ", strings.Join(strings.Fields(out), " "))
}
