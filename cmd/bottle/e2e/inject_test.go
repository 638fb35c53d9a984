package e2e

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/bot-bottle/bottle/internal/bytesearch"
	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/internal/segment"
)

const injectManifest = `
version: 1
bottles:
  dev:
    env:
      GH_TOKEN: {from: MINE, inject: [allowed.test, git.allowed.test]}
      OTHER: {from: OTHERS, inject: [wild.test], as: [X-Api-Key, query]}
      PLAIN: {from: OLD, inject: false}
    egress: {allow: [allowed.test, git.allowed.test, sub.wild.test, wild.test]}
  claude:
    image: claude-bottle:claude
    env: {ANTHROPIC_API_KEY: {from: KEY}, CLAUDE_CODE_MAX_RETRIES: 0}
  oauth:
    image: claude-bottle:claude
    env: {CLAUDE_CODE_OAUTH_TOKEN: {from: KEY}, CLAUDE_CODE_MAX_RETRIES: 0}
agents:
  wait: {bottle: dev, command: [sh, -c, "echo ready; cat"]}
  sh: {bottle: dev, command: [bash, -ec]}
  sleep: {bottle: dev, command: [sleep, infinity]}
  claude: {kind: claude, bottle: claude, unattended: true}
  oauth: {kind: claude, bottle: oauth, unattended: true}
`

// injectScene is a bottle with two secrets that it does not have, and one that it has.
type injectScene struct {
	*bytesearch.Search
	t                 *testing.T
	u                 user
	name              string
	mine, other, gave string
	live              *live
	front             bool // secrets are inserted in front of pipelock
}

func newToken(prefix string, n int) string {
	return prefix + strings.ToLower(rand.Text()) + rand.Text()[:n-26]
}

func hashOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func startInjecting(t *testing.T, name string) *injectScene {
	t.Helper()
	s := newInjectScene(t, name)
	s.u.write("bottle.yaml", injectManifest)
	s.live = s.u.startAgent("wait", name)
	return s
}

func newInjectScene(t *testing.T, name string) *injectScene {
	t.Helper()
	s := &injectScene{
		Search: bytesearch.New(t), t: t, u: newUser(t), name: name,
		mine: newToken("ghp_", 36), other: newToken("tok-", 44), gave: newToken("old-", 40),
	}
	s.Add("injected", s.mine)
	s.Add("other", s.other)
	s.Add("given", s.gave)
	s.u = s.u.with("MINE="+s.mine, "OTHERS="+s.other, "OLD="+s.gave)
	return s
}

// inside runs a script in the bottle and returns its output.
func (s *injectScene) inside(script string) string {
	s.t.Helper()
	r := s.u.bottle("exec", "-T", s.name, "bash", "-c", "exec 2>&1; cd $(mktemp -d); "+script)
	return r.stdout + r.stderr
}

// want checks that a script prints texts.
func (s *injectScene) want(what, script string, texts ...string) {
	s.t.Helper()
	out := s.inside(script)
	for _, text := range texts {
		if !strings.Contains(out, text) {
			s.t.Errorf("%s: no %q in\n%s", what, text, out)
		}
	}
	if strings.Contains(out, s.mine) || strings.Contains(out, s.other) {
		s.t.Errorf("%s: the agent sees the value:\n%s", what, out)
	}
}

// TestInjectedSecret: requests have the value at the host that it is for, and neither the
// agent nor any place that it can read has it. The control is a secret that it is given.
func TestInjectedSecret(t *testing.T) {
	leakcheck.Check(t)
	s := startInjecting(t, "claude-bottle-inject")
	s.addKey()
	url, repo := "https://allowed.test/auth/"+hashOf(s.mine), "git.allowed.test/auth/"+hashOf(s.mine)+"/demo.git"
	s.want("placeholder", `echo "${#GH_TOKEN} $GH_TOKEN"`, "40 ghp_")
	s.want("Bearer", `curl -sS -H "Authorization: Bearer $GH_TOKEN" `+url+"/", "hello from allowed.test")
	s.want("Basic", `curl -sS -u "me:$GH_TOKEN" `+url+"/", "hello from allowed.test")
	s.want("header", `curl -sS -H "X-Api-Key: $GH_TOKEN" `+url+"/", "hello from allowed.test")
	s.want("cookie", `curl -sS -b "session=$GH_TOKEN" `+url+"/", "hello from allowed.test")
	s.want("query", `curl -sS https://wild.test/auth/`+hashOf(s.other)+`/?key=$OTHER`, "hello from wild.test")
	s.want("echo", `curl -sS -H "Authorization: Bearer $GH_TOKEN" `+url+`/headers | grep -o "Bearer $GH_TOKEN"`, "Bearer ghp_")
	s.want("upload", `head -c 3000000 /dev/urandom >f; curl -sS -H "Authorization: Bearer $GH_TOKEN" --data-binary @f `+url+"/echo | cmp - f && echo same", "same")
	branch := "inject-" + strings.ToLower(rand.Text())
	s.want("git", `git clone -q "https://me:$GH_TOKEN@`+repo+`" w && cd w && git checkout -q -b `+branch+` && echo x >new && git add new &&
		git -c user.name=a -c user.email=a@b commit -qm new && git push -q origin HEAD && git ls-remote origin `+branch+` && git push -q origin :`+branch+` && echo pushed`,
		"refs/heads/"+branch, "pushed")
	s.want("many requests", `curl -sS -o /dev/null -w "%{http_code}\n" -H "Authorization: Bearer $GH_TOKEN" "`+url+`/bytes?n=[1-500]" | sort | uniq -c`, "500 200")
	// A host without a secret is not terminated, and a wrong credential is wrong.
	s.want("untouched", `curl -sSv https://sub.wild.test/ | grep issuer`, "bottle lab test authority")
	s.want("terminated", `curl -sSv https://allowed.test/ | grep issuer`, "CN=bottle ")
	s.want("wrong", `curl -sS -H "Authorization: Bearer ghp_wrong" `+url+"/", "wrong credential")

	found := append(s.Everywhere(nil), s.Memory(s.name)...)
	places := s.checkPlaces(found)
	if !places["injected"] || !places["given"] || !places["given in the sandbox"] {
		t.Errorf("the search finds only %v", places)
	}
	s.wantLog("sent", "GH_TOKEN")
	if code := s.live.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, s.live.errs)
	}
	found = append(s.Files("/run/bottle"), s.In("messages", strings.NewReader(s.live.errs.String()))...)
	for _, f := range append(found, s.Processes()...) {
		if !strings.HasSuffix(f.Place, "/world/world.log") {
			t.Errorf("after the end: %s: %s", f.Place, f.Form)
		}
	}
}

// addKey has the authority's key looked for, too.
func (s *injectScene) addKey() {
	s.t.Helper()
	data, err := os.ReadFile(s.secretsFile())
	if err != nil {
		s.t.Fatal(err)
	}
	var f struct{ CA string }
	if err := json.Unmarshal(data, &f); err != nil {
		s.t.Fatal(err)
	}
	_, key, ok := strings.Cut(f.CA, "EC PRIVATE KEY-----\n")
	if !ok {
		s.t.Fatal("no key")
	}
	s.Add("key", strings.Split(key, "\n")[1])
	fi, err := os.Stat(s.secretsFile())
	if err != nil {
		s.t.Fatal(err)
	}
	if st := fi.Sys().(*syscall.Stat_t); fi.Mode() != 0o400 || st.Uid != map[bool]uint32{false: 65534, true: segment.FrontUID}[s.front] || !bytesearch.IsTmpfs(s.secretsFile()) {
		s.t.Errorf("secrets.json: mode %v, owner %d, tmpfs %v", fi.Mode(), st.Uid, bytesearch.IsTmpfs(s.secretsFile()))
	}
}

func (s *injectScene) secretsFile() string {
	s.t.Helper()
	found, err := filepath.Glob("/run/bottle/*/" + s.name + map[bool]string{false: "/proxy", true: "/front"}[s.front] + "/config/secrets.json")
	if err != nil || len(found) != 1 {
		s.t.Fatalf("found %v, %v", found, err)
	}
	return found[0]
}

// checkPlaces fails for each place where a value may not be, and returns which were found
// where they must be.
func (s *injectScene) checkPlaces(found []bytesearch.Find) map[string]bool {
	s.t.Helper()
	places := map[string]bool{}
	for _, f := range found {
		what, _, _ := strings.Cut(f.Form, ", ")
		switch {
		case what == "other" && strings.HasSuffix(f.Place, "/world/world.log"): // its host logs queries
		case f.Place == "environ of "+strconv.Itoa(s.live.cmd.Process.Pid):
		case f.Place == s.secretsFile() && what != "given":
			places[what] = true
		case strings.HasSuffix(f.Place, s.name+"/guest/env") && what == "given":
			places[what] = true
		case strings.HasPrefix(f.Place, "memory of ") && what == "given":
			places["given in the sandbox"] = true
		default:
			s.t.Errorf("%s: %s", f.Place, f.Form)
		}
	}
	return places
}

// wantLog checks that a line of the egress log has texts.
func (s *injectScene) wantLog(texts ...string) {
	s.t.Helper()
	log := s.u.bottle("egress", s.name).stdout
	for line := range strings.Lines(log) {
		has := true
		for _, text := range texts {
			has = has && strings.Contains(line, text)
		}
		if has {
			return
		}
	}
	s.t.Errorf("no line with %q in the log:\n%s", texts, log)
}

// TestInjectAttacks: the placeholder is worth nothing elsewhere. In each control the same
// is tried with a secret that the agent has.
func TestInjectAttacks(t *testing.T) {
	leakcheck.Check(t)
	s := startInjecting(t, "claude-bottle-misuse")
	mine, gave := hashOf(s.mine), hashOf(s.gave)
	token := `-H "Authorization: Bearer $GH_TOKEN" `
	given := `-H "Authorization: Bearer $PLAIN" `
	for _, a := range []struct{ what, victim, control, want string }{
		{
			"another allowed host", `curl -sS ` + token + `https://sub.wild.test/auth/` + mine + `/`,
			`curl -sS ` + given + `https://sub.wild.test/auth/` + gave + `/`, "wrong credential",
		},
		{
			"a host with another secret", `curl -sS ` + token + `https://wild.test/auth/` + mine + `/`,
			`curl -sS ` + given + `https://wild.test/auth/` + gave + `/`, "bottle: secret GH_TOKEN: not for wild.test:443",
		},
		{
			"another header", `curl -sS -H "X-Other: $OTHER" https://wild.test/headers`,
			`curl -sS -H "X-Other: $PLAIN" https://wild.test/headers`, "bottle: secret OTHER: not for header X-Other",
		},
		{
			"query", `curl -sS "https://allowed.test/auth/` + mine + `/?key=$GH_TOKEN"`,
			`curl -sS "https://allowed.test/auth/` + gave + `/?key=$PLAIN"`, "bottle: secret GH_TOKEN: not for queries",
		},
		{
			"body", `curl -sS ` + token + `-d "$GH_TOKEN" https://allowed.test/echo`,
			`curl -sS -d "$PLAIN" https://allowed.test/echo`, "ghp_", // arrives as it is
		},
		{
			"redirect", `curl -sS -L --location-trusted ` + token + `"https://allowed.test/redirect?to=https://sub.wild.test/auth/` + mine + `/"`,
			`curl -sS -L --location-trusted ` + given + `"https://allowed.test/redirect?to=https://sub.wild.test/auth/` + gave + `/"`, "wrong credential",
		},
		{
			"Host", `curl -sS -H "Host: sub.wild.test" ` + token + `https://allowed.test/headers`,
			`curl -sS -H "Host: other.test" https://sub.wild.test/headers`, `bottle: wrong Host "sub.wild.test"`,
		},
		{
			"plain HTTP", `curl -sS ` + token + `http://allowed.test/auth/` + mine + `/`,
			`curl -sS -H "X-Other: $PLAIN" http://allowed.test/headers`, "blocked: ",
		},
	} {
		out := s.inside(a.victim)
		if !strings.Contains(out, a.want) || strings.Contains(out, s.mine) || strings.Contains(out, s.other) {
			t.Errorf("%s: no %q in\n%s", a.what, a.want, out)
		}
		if out := s.inside(a.control); strings.Contains(out, a.want) || !strings.Contains(out, "hello") && !strings.Contains(out, s.gave) && !strings.Contains(out, "other.test") {
			t.Errorf("%s: the control is refused:\n%s", a.what, out)
		}
	}
	// A server name other than CONNECT's.
	s.want("SNI", `curl -sS --connect-to sub.wild.test:443:allowed.test:443 `+token+`https://sub.wild.test/`, "curl: (35)")
	s.wantLog("refused", "allowed.test:443", "wrong server name")
	s.wantLog("refused", "wild.test:443", "secret GH_TOKEN: not for wild.test:443")
	r := s.u.bottle("egress", s.name, "--denied")
	if !strings.Contains(r.stdout, "not for queries of URLs") || strings.Contains(r.stdout, s.mine) {
		t.Errorf("refusals:\n%s%s", r.stdout, r.stderr)
	}
	// The authority: no key, other names and other bottles.
	s.want("key", `ls /.bottle; cat /.bottle/* 2>/dev/null | grep -c "PRIVATE KEY"`, "ca.pem", "\n0\n")
	ca := s.inside("cat /.bottle/ca.pem")
	if !strings.HasPrefix(ca, "-----BEGIN CERTIFICATE") {
		t.Fatalf("the authority's certificate: %s", ca)
	}
	// Outside its bottle, the authority is worth nothing: another bottle has its own, and the
	// host trusts neither. In the control each trusts what it should.
	other := s.u.bottle("run", "sh", "--proxy", "builtin", "--yes", "-q", "--",
		`echo "$1" >ca; curl -sS https://allowed.test/; curl -sS --cacert ca https://allowed.test/ 2>&1 || true`, "sh", ca)
	if other.code != 0 || !strings.HasPrefix(other.stdout, "hello from allowed.test\ncurl: (60)") {
		t.Errorf("in another bottle: exit %d\n%s%s", other.code, other.stdout, other.stderr)
	}
	s.wantUntrusted(ca)
	if code := s.live.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, s.live.errs)
	}
	if !strings.Contains(s.live.errs.String(), "a secret that is not for this host") {
		t.Errorf("the misuse is not shown at the end:\n%s", s.live.errs)
	}
}

// wantUntrusted checks that the host does not trust a bottle's authority. The control is the
// authority of the world.
func (s *injectScene) wantUntrusted(bottles string) {
	s.t.Helper()
	world, err := os.ReadFile(os.Getenv("LAB_CA"))
	if err != nil {
		s.t.Fatal(err)
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		s.t.Fatal(err)
	}
	for text, trusted := range map[string]bool{bottles: false, string(world): true} {
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			s.t.Fatalf("no certificate: %s", text)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			s.t.Fatal(err)
		}
		if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); (err == nil) != trusted {
			s.t.Errorf("the host verifies %s: %v", cert.Subject, err)
		}
	}
}

// TestInjectUnderPolicy: a host that is no longer allowed gets no secret, also from the
// restarted proxy, which has its secrets again.
func TestInjectUnderPolicy(t *testing.T) {
	leakcheck.Check(t)
	s := startInjecting(t, "claude-bottle-injected")
	request := `curl -sS -H "Authorization: Bearer $GH_TOKEN" https://allowed.test/auth/` + hashOf(s.mine) + "/"
	s.want("before", request, "hello from allowed.test")
	ctr(t, "tasks", "kill", "--signal", "SIGKILL", s.name+".proxy")
	s.want("restarted", "for i in $(seq 100); do "+request+" && break; sleep 0.1; done", "hello from allowed.test")
	s.u.bottle("deny", s.name, "allowed.test").want(t, 0, "")
	s.want("denied", request, "403")
	if code := s.live.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, s.live.errs)
	}
}

// TestSecretSet: requests get a secret's new value, the agent keeps its placeholder, and
// the former value is still replaced in responses. A mistake changes nothing.
func TestSecretSet(t *testing.T) {
	leakcheck.Check(t)
	s := startInjecting(t, "claude-bottle-rotated")
	placeholder := s.inside(`echo "$GH_TOKEN"`)
	request := func(value string) string {
		return `curl -sS -H "Authorization: Bearer $GH_TOKEN" https://allowed.test/auth/` + hashOf(value) + "/"
	}
	s.want("before", request(s.mine), "hello from allowed.test")
	renewed := newToken("ghp_", 36)
	s.Add("renewed", renewed)
	for _, c := range []struct {
		variable, value, want string
	}{
		{"GH_TOKEN", "short", "secret GH_TOKEN: value is too short to be injected"},
		{"GH_TOKEN", "two\nlines of text", "secret GH_TOKEN: invalid value: contains a control character"},
		{"PLAIN", renewed, "PLAIN of " + s.name + " is not injected\nhint: injected variables: GH_TOKEN, OTHER"},
	} {
		r := s.u.says(c.value).bottle("secret", "set", s.name, c.variable)
		if r.code != 125 || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%s: exit %d, %q, want %q", c.variable, r.code, r.stderr, c.want)
		}
	}
	s.want("after mistakes", request(s.mine), "hello from allowed.test")
	// A session does not bring the value in, unless it is written on the command line.
	given := s.u.with("GH_TOKEN="+s.mine).bottle("exec", "-e", "GH_TOKEN", s.name, "env")
	if given.code != 125 || !strings.Contains(given.stderr, "GH_TOKEN of "+s.name+" is injected") || strings.Contains(given.stdout, s.mine) {
		t.Errorf("exec -e GH_TOKEN: exit %d\n%s%s", given.code, given.stdout, given.stderr)
	}
	given = s.u.with("FREE="+s.gave).bottle("exec", "-e", "FREE", "-e", "GH_TOKEN=literal", s.name, "sh", "-c", `echo "$FREE $GH_TOKEN"`)
	given.want(t, 0, s.gave+" literal\n")
	r := s.u.says(renewed+"\n").bottle("secret", "set", s.name, "GH_TOKEN")
	if r.code != 0 || r.stderr != "Requests of "+s.name+" now get the new GH_TOKEN.\n" {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
	s.want("after", request(renewed), "hello from allowed.test")
	s.want("the former value", request(s.mine), "wrong credential")
	if now := s.inside(`echo "$GH_TOKEN"`); now != placeholder {
		t.Errorf("the placeholder is now %q, was %q", now, placeholder)
	}
	if out := s.inside(`curl -sS -d ` + s.mine + ` https://allowed.test/echo; curl -sS -d ` + renewed + ` https://allowed.test/echo`); out != strings.Repeat(strings.TrimSpace(placeholder), 2) {
		t.Errorf("echoes of both values: %q", out)
	}
	// Also after a restart of the proxy.
	ctr(t, "tasks", "kill", "--signal", "SIGKILL", s.name+".proxy")
	s.want("restarted", "for i in $(seq 100); do "+request(renewed)+" && break; sleep 0.1; done", "hello from allowed.test")
	for _, f := range append(s.Files("/run/bottle"), s.Processes()...) {
		if strings.HasPrefix(f.Form, "renewed") && f.Place != s.secretsFile() && !strings.HasSuffix(f.Place, "/world/world.log") {
			t.Errorf("%s: %s", f.Place, f.Form)
		}
	}
	if code := s.live.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, s.live.errs)
	}
	r = s.u.says(renewed).bottle("secret", "set", s.name, "GH_TOKEN")
	if r.code != 125 || !strings.Contains(r.stderr, s.name) {
		t.Errorf("a bottle that is gone: exit %d\n%s", r.code, r.stderr)
	}
}

// TestSecretFile: a file source of an injected secret that changes is picked up, also for a
// detached bottle. A file that others can read stops a launch.
func TestSecretFile(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	u.write("bottle.yaml", strings.ReplaceAll(injectManifest, "{from: MINE, ", "{file: token, "))
	u = u.with("OLD=x", "OTHERS="+newToken("tok-", 44))
	values := []string{newToken("ghp_", 36), newToken("ghp_", 36), newToken("ghp_", 36)}
	replace := func(value string) {
		t.Helper()
		u.write("token.new", value+"\n")
		if err := os.Rename(filepath.Join(u.dir, "token.new"), filepath.Join(u.dir, "token")); err != nil {
			t.Fatal(err)
		}
	}
	arrives := func(name, value string) {
		t.Helper()
		script := `for i in $(seq 300); do curl -sSf -H "Authorization: Bearer $GH_TOKEN" https://allowed.test/auth/` + hashOf(value) + `/ 2>/dev/null && exit; sleep 0.1; done`
		if r := u.exec(name, "bash", "-c", script); r.stdout != "hello from allowed.test\n" {
			t.Errorf("%s: %q\n%s", name, r.stdout, r.stderr)
		}
	}
	replace(values[0])
	l := u.startAgent("wait", "claude-bottle-file")
	arrives(l.name, values[0])
	replace(values[1])
	arrives(l.name, values[1])
	if err := os.Chmod(filepath.Join(u.dir, "token"), 0o644); err != nil {
		t.Fatal(err)
	}
	detached := "claude-bottle-behind"
	u.bottle("run", "sleep", "-d", "--proxy", "builtin", "--yes", "--name", detached).want(t, 125, "") // its file is open to others
	replace(values[1])
	u.bottle("run", "sleep", "-d", "--proxy", "builtin", "--yes", "--name", detached).want(t, 0, detached+"\n")
	arrives(detached, values[1])
	replace(values[2])
	arrives(detached, values[2])
	arrives(l.name, values[2])
	u.bottle("rm", "-f", detached)
	if code := l.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, l.errs)
	}
}

// TestSecretCommand: a command with a ttl runs again before its value expires, as the caller
// and also for a detached bottle. While it fails, the last value stays in force.
func TestSecretCommand(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	u.write("bottle.yaml", strings.ReplaceAll(injectManifest, "{from: MINE, ", "{command: ["+filepath.Join(u.dir, "helper")+"], ttl: 1h, "))
	u = u.with("OLD=x", "OTHERS="+newToken("tok-", 44))
	helper := func(script string) {
		t.Helper()
		u.write("helper.new", "#!/bin/sh\n"+script)
		if err := os.Chmod(filepath.Join(u.dir, "helper.new"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(u.dir, "helper.new"), filepath.Join(u.dir, "helper")); err != nil {
			t.Fatal(err)
		}
	}
	// The first value expires soon, the others do not.
	first, second := newToken("ghp_", 36), newToken("ghp_", 36)
	once := filepath.Join(u.dir, "once")
	helper(`if [ -e ` + once + ` ]; then echo ` + second + `; else
  touch ` + once + `; printf '{"token": "` + first + `", "expires_at": "%s"}' "$(date -u -d '+20 seconds' +%Y-%m-%dT%H:%M:%SZ)"; fi
`)
	name := "claude-bottle-expiring"
	u.bottle("run", "sleep", "-d", "--proxy", "builtin", "--yes", "--name", name).want(t, 0, name+"\n")
	for _, value := range []string{first, second} {
		script := `for i in $(seq 600); do curl -sSf -H "Authorization: Bearer $GH_TOKEN" https://allowed.test/auth/` + hashOf(value) + `/ 2>/dev/null && exit; sleep 0.1; done`
		if r := u.exec(name, "bash", "-c", script); r.stdout != "hello from allowed.test\n" {
			t.Errorf("%q\n%s", r.stdout, r.stderr)
		}
	}
	u.bottle("rm", "-f", name)

	helper("echo '{\"token\": 7}'\n")
	r := u.bottle("run", "sleep", "-d", "--proxy", "builtin", "--yes", "--name", name)
	if r.code != 125 || !strings.Contains(r.stderr, "printed invalid JSON\nhint: expected the value, or") {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
}

// TestInjectMistakes: what cannot be injected is an error before anything starts.
func TestInjectMistakes(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t).with("MINE=short", "OTHERS=long enough to be one")
	u.write("bottle.yaml", injectManifest)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--proxy", "builtin"}, "cannot inject secrets: secret GH_TOKEN: value is too short to be injected: 5 characters (min 8)\nhint: correct"},
	} {
		r := u.with("OLD=x").bottle(append([]string{"run", "sh", "--yes"}, c.args...)...)
		if r.code != 125 || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%v: exit %d, %q, want %q", c.args, r.code, r.stderr, c.want)
		}
	}
	u.write("bottle.yaml", strings.ReplaceAll(injectManifest, "allow: [allowed.test, ", "allow: ["))
	r := u.with("OLD=x", "MINE=long enough to be one").bottle("run", "sh", "--proxy", "builtin", "--yes")
	if r.code != 125 || !strings.Contains(r.stderr, "cannot inject GH_TOKEN for allowed.test:443: not allowed by egress\nhint: add the host to egress.allow") {
		t.Errorf("exit %d, %q", r.code, r.stderr)
	}
}

// TestInjectClaude: Claude Code works with a placeholder of either login.
func TestInjectClaude(t *testing.T) {
	leakcheck.Check(t)
	for agent, key := range map[string]string{
		"claude": "sk-ant-api03-" + rand.Text() + rand.Text() + rand.Text() + "AA", "oauth": "sk-ant-oat01-" + rand.Text() + rand.Text() + rand.Text() + "AA",
	} {
		u := newUser(t).with("KEY=" + key)
		u.write("bottle.yaml", injectManifest)
		keys := messageKeys(t)
		r := u.run(agent, "-p", "say hello")
		if r.code != 0 || r.stdout != "TOOL-ROUND-DONE: made-in-bottle\n" || strings.Contains(r.stderr, key) {
			t.Errorf("%s: exit %d\n%s%s", agent, r.code, r.stdout, r.stderr)
		}
		got := keys()
		if len(got) == 0 {
			t.Errorf("%s: no request", agent)
		}
		for _, k := range got {
			if k != hashOf(key) {
				t.Errorf("%s: a request has another key", agent)
			}
		}
		if !strings.Contains(r.stderr, "placeholder, inserted for api.anthropic.com:443") {
			t.Errorf("plan:\n%s", r.stderr)
		}
	}
}

// messageKeys returns a function that returns the hashes of the credentials that the mock
// of the Messages API has got since.
func messageKeys(t *testing.T) func() []string {
	t.Helper()
	file := filepath.Join(os.Getenv("LAB_STATE"), "world/messages.jsonl")
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return func() []string {
		t.Helper()
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for line := range strings.Lines(string(data[len(before):])) {
			var m struct{ Key string }
			if err := json.Unmarshal([]byte(line), &m); err != nil {
				t.Fatal(err)
			}
			out = append(out, m.Key)
		}
		return out
	}
}
