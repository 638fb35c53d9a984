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
		{"behind the walls", []string{"allowed.test"}, nil, 0, []string{
			`(?m)^links .*\beth0 10\.77\.0\.2/30`,
			`(?m)^routes +10\.77\.0\.0/30 on eth0$`,
			`(?m)^ok +https://allowed\.test/ +200 OK: hello from allowed\.test$`,
			`(?m)^ok +http://allowed\.test/ +200 OK: hello from allowed\.test$`,
			`(?m)^refused +https://refused\.test/ +403 Forbidden: .*refused\.test`,
			`(?m)^refused +http://refused\.test/ +403 Forbidden: .*refused\.test`,
			`(?m)^unreachable +tcp 198\.51\.101\.10:443 without proxy +.*network is unreachable$`,
			`(?m)^unreachable +dns allowed\.test at 198\.51\.101\.53:53 +.*network is unreachable$`,
			`everything is as the walls say\n$`,
		}},
		{"the allowed host is refused", nil, nil, 1, []string{
			`WRONG: https://allowed\.test/ is refused and not ok 200; http://allowed\.test/ is refused and not ok 200\n$`}},
		{"the refused host is allowed", []string{"*.test"}, nil, 1, []string{
			`WRONG: https://refused\.test/ is ok and not refused 403; http://refused\.test/ is ok and not refused 403\n$`}},
		{"there is a way past the proxy", []string{"allowed.test"}, []string{routeVar + "=1"}, 1, []string{
			`(?m)^routes +default on eth0, `,
			`WRONG: tcp 198\.51\.101\.10:443 without proxy is ok and not unreachable; dns allowed\.test at 198\.51\.101\.53:53 is ok and not unreachable\n$`}},
		{"there is no proxy", []string{"allowed.test"}, []string{"HTTPS_PROXY=", "HTTP_PROXY="}, 1, []string{
			`WRONG: https://allowed\.test/ is unreachable and not ok 200; `}},
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

// Each probe runs once with a way to the world and once without.
func TestProbes(t *testing.T) {
	state := startWorld(t)
	for _, c := range []struct {
		args       string
		open, shut string // the exit code and the beginning of the output
	}{
		{"get https://allowed.test/bytes?n=3", "0 ok 200 OK abc", "0 ok 200 OK abc"},
		{"get https://private.test/", "1 refused 403 Forbidden CONNECT blocked:", "1 refused 403 Forbidden CONNECT blocked:"},
		{"get http://allowed.test/redirect?to=/x", "0 ok 302 Found", "0 ok 302 Found"},
		{"get http://allowed.test/nothing", "1 refused 404 Not Found 404 page not found", "1 refused 404 Not Found"},
		{"-direct get http://169.254.169.254/", "0 ok 200 OK hello from meta.test", "1 unreachable dial tcp 169.254.169.254:80: connect: network is unreachable"},
		{"dial 198.51.101.66:22", "0 ok connected: victim 198.51.101.66:22", "1 unreachable dial tcp 198.51.101.66:22: connect: network is unreachable"},
		{"dial 198.51.101.66:7", "1 refused dial tcp 198.51.101.66:7: connect: connection refused", "1 unreachable"},
		{"dial 198.51.101.10:80 hello", "0 ok connected", "1 unreachable"},
		{"udp 10.99.0.10:9999 secret", "0 ok answered: victim 10.99.0.10:9999", "1 unreachable dial udp 10.99.0.10:9999: connect: network is unreachable"},
		{"-timeout 300ms get https://allowed.test/slow?ms=60000&n=1", "1 unreachable", "1 unreachable"},
		{"fly away", "2 demoagent: fly with 1 arguments is no command (demoagent --help)", "2 demoagent: fly"},
		{"--fly", "2 flag provided but not defined: -fly", "2 flag provided but not defined: -fly"},
	} {
		for env, want := range map[string]string{routeVar + "=1": c.open, "": c.shut} {
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

// words are the exit code and the output, without what the probe has looked for
// and the spaces of the columns.
func words(code int, out string) string {
	out = regexp.MustCompile(`^(ok|refused|unreachable) +((tcp|udp) )?\S+ +`).ReplaceAllString(out, "$1 ")
	return fmt.Sprint(code, " ", strings.Join(strings.Fields(out), " "))
}
