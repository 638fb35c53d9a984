package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

const loginsManifest = `
version: 1
bottles:
  dev:
    logins: [netrc, npm]
    env: {PLAIN: {from: OLD}}
    egress: {allow: [allowed.test, wild.test]}
  claude:
    logins: [claude]
    egress: {allow: [api.anthropic.com]}
agents:
  wait: {bottle: dev, command: [sh, -c, "echo ready; cat"]}
  claude: {bottle: claude, command: [sh, -c, "echo ready; cat"]}
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

// TestClaudeLoginIsRenewed: bottle renews Claude Code's login in the user's file, at the start
// and while the bottle runs, and requests get the new token. The agent has neither token, and
// cannot use the refresh token up. The control is the server, which accepts one only once.
func TestClaudeLoginIsRenewed(t *testing.T) {
	leakcheck.Check(t)
	s := newInjectScene(t, "claude-bottle-renewed")
	file := filepath.Join(s.u.dir, ".credentials.json")
	s.u = s.u.with("CLAUDE_CONFIG_DIR=" + s.u.dir)
	s.u.write("bottle.yaml", loginsManifest)
	write := func(access, refresh string, life time.Duration) {
		t.Helper()
		text := fmt.Sprintf(`{"claudeAiOauth": {"accessToken": %q, "refreshToken": %q, "expiresAt": %d, "scopes": ["user:inference"], "subscriptionType": "max"}, "mcpOAuth": {}}`,
			access, refresh, time.Now().Add(life).UnixMilli())
		if err := errors.Join(os.WriteFile(file+".new", []byte(text), 0o600), os.Rename(file+".new", file)); err != nil {
			t.Fatal(err)
		}
	}
	access, refresh := newToken("sk-ant-oat01-", 50), newToken("sk-ant-ort01-", 50)
	write(access, refresh, -time.Minute)
	s.live = s.u.startAgent("claude", s.name)
	values := []string{access, refresh}
	// renewed waits for another login in the file, and checks that requests have its token.
	renewed := func(after string) (access, refresh string) {
		t.Helper()
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			var f struct {
				Login struct{ AccessToken, RefreshToken, SubscriptionType string } `json:"claudeAiOauth"`
				MCP   json.RawMessage                                              `json:"mcpOAuth"`
			}
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(data, &f); err != nil {
				t.Fatal(err)
			}
			if f.Login.AccessToken == after {
				continue
			}
			if f.Login.SubscriptionType != "max" || string(f.MCP) != "{}" {
				t.Errorf("the file has lost something: %s", data)
			}
			access, refresh = f.Login.AccessToken, f.Login.RefreshToken
			break
		}
		if fi, err := os.Stat(file); access == "" || err != nil || fi.Mode() != 0o600 {
			t.Fatalf("not renewed, or mode %v, %v", fi.Mode(), err)
		}
		values = append(values, access, refresh)
		keys := messageKeys(t)
		for range 100 {
			s.inside(`token=$(sed -n 's/.*"accessToken": "\([^"]*\)".*/\1/p' ~/.claude/.credentials.json); curl -sS -o /dev/null -H "Authorization: Bearer $token" -d '{"messages": [{"role": "user", "content": "hello"}]}' https://api.anthropic.com/v1/messages`)
			if got := keys(); len(got) > 0 && got[len(got)-1] == hashOf(access) {
				return access, refresh
			}
		}
		t.Errorf("no request has the new token: %q", keys())
		return access, refresh
	}
	access, refresh = renewed(access)
	write(access, refresh, time.Minute) // as if almost all of its time had passed
	renewed(access)
	s.want("the agent's copy", `cat ~/.claude/.credentials.json`, `"accessToken": "sk-ant-oat01-`)
	s.want("the agent asks", `curl -sS -d '{"grant_type": "refresh_token", "refresh_token": "x", "client_id": "x"}' https://platform.claude.com/v1/oauth/token`, "403")
	copied := s.inside(`cat ~/.claude/.credentials.json; env`)
	for _, v := range values {
		if strings.Contains(copied, v) {
			t.Error("the agent has a token of the user's")
		}
	}
	if strings.Contains(copied, "refresh") {
		t.Errorf("the copy has a refresh token:\n%s", copied)
	}
	if code := s.live.end(); code != 0 || !strings.Contains(s.live.errs.String(), "; renewed in the file before it ends)") {
		t.Errorf("exit %d\n%s", code, s.live.errs)
	}

	// A login that cannot be renewed any more stops a launch.
	write(access, refresh, -time.Minute)
	r := s.u.bottle("run", "claude", "--proxy", "builtin", "--yes")
	if r.code != 125 || !strings.Contains(r.stderr, "renew the login in "+file) || !strings.Contains(r.stderr, "hint: log in with claude") || strings.Contains(r.stderr, refresh) {
		t.Errorf("a token that was used: exit %d\n%s", r.code, r.stderr)
	}
}
