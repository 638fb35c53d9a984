package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

const loginsManifest = `
version: 1
bottles:
  dev:
    logins: [netrc, npm]
    env: {PLAIN: {from: OLD}}
    egress: {allow: [allowed.test, wild.test]}
agents:
  wait: {bottle: dev, command: [sh, -c, "echo ready; cat"]}
`

// TestLoginFiles: the agent has copies of the user's files of logins, with placeholders that
// work, and their values are nowhere inside. The control is a variable that it is given. A
// file that is replaced is picked up.
func TestLoginFiles(t *testing.T) {
	leakcheck.Check(t)
	s := newInjectScene(t, "claude-bottle-logins")
	netrc, npmrc := filepath.Join(s.u.dir, "netrc"), filepath.Join(s.u.dir, "npmrc")
	s.u = s.u.with("NETRC="+netrc, "NPM_CONFIG_USERCONFIG="+npmrc)
	s.u.write("bottle.yaml", loginsManifest)
	r := s.u.bottle("run", "wait", "--proxy", "builtin", "--yes", "--name", s.name)
	if r.code != 125 || !strings.Contains(r.stderr, "read the logins of netrc from "+netrc) || !strings.Contains(r.stderr, "or remove netrc from logins") {
		t.Errorf("without files: exit %d\n%s", r.code, r.stderr)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(name+".new", name); err != nil {
			t.Fatal(err)
		}
	}
	login := func(password string) string {
		return "machine allowed.test login me password " + password + "\nmachine elsewhere.test login me password never-" + s.mine + "\n"
	}
	write(npmrc, "//elsewhere.test/:_authToken="+s.other+"\n")
	write(netrc, login(s.mine))
	r = s.u.bottle("run", "wait", "--proxy", "builtin", "--yes", "--name", s.name)
	if r.code != 125 || !strings.Contains(r.stderr, "cannot use the logins of npm in "+npmrc+": egress allows none of their hosts: elsewhere.test\nhint: add the host") {
		t.Errorf("a host that is not allowed: exit %d\n%s", r.code, r.stderr)
	}
	write(npmrc, "//wild.test/:_authToken="+s.other+"\n")
	s.live = s.u.startAgent("wait", s.name)
	request := func(value string) string { return "curl -sS -n https://allowed.test/auth/" + hashOf(value) + "/" }
	s.want("netrc", request(s.mine), "hello from allowed.test")
	s.want("its copy", `cat ~/.netrc; stat -c %a ~/.netrc`, "machine allowed.test login me password ghp_", "\n600\n")
	if out := s.inside("cat ~/.netrc"); strings.Contains(out, "elsewhere") {
		t.Errorf("a host that is not allowed is in the copy:\n%s", out)
	}
	s.want("npm", `token=$(sed -n 's/.*_authToken=//p' ~/.npmrc); curl -sS -H "Authorization: Bearer $token" https://wild.test/auth/`+hashOf(s.other)+"/", "hello from wild.test")
	s.want("another host", `token=$(sed -n 's/.*_authToken=//p' ~/.npmrc); curl -sS -H "Authorization: Bearer $token" https://allowed.test/`, "bottle: secret npm:wild.test: not for allowed.test:443")
	found := append(append(s.Processes(), s.Files("/run/bottle")...), s.Files(s.Roots()[2])...)
	places := s.checkPlaces(append(found, s.Memory(s.name)...))
	if !places["injected"] || !places["other"] || !places["given in the sandbox"] {
		t.Errorf("the search finds only %v", places)
	}
	renewed := newToken("ghp_", 36)
	write(netrc, login(renewed))
	s.want("another value", "for i in $(seq 300); do "+request(renewed)+" | grep hello && break; sleep 0.1; done", "hello from allowed.test")
	s.wantLog("sent", "netrc:allowed.test")
	if code := s.live.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, s.live.errs)
	}
	if !strings.Contains(s.live.errs.String(), "netrc:allowed.test (from "+netrc+"; placeholder, inserted for allowed.test:443)") {
		t.Errorf("plan:\n%s", s.live.errs)
	}
}
