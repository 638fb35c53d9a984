package clients

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/bytesearch"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// secretsConfig gives a bottle a secret of each kind that it does not have, and GIVEN, which
// it has. LOGINS is replaced by the files of logins that the image has programs for.
const secretsConfig = `
version: 1
bottles:
  clients:
    image: ` + secretsImage + `
    egress: {allow: [packages.test, api.anthropic.com, wild.test]}
    logins: LOGINS
    env:
      TOKEN: {from: MINE, inject: [packages.test]}
      ANTHROPIC_API_KEY: {from: KEY, inject: ["@anthropic"]}
      GIVEN: {from: GAVE, inject: false}
      BASE: https://packages.test
      DISABLE_AUTOUPDATER: 1
      CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: 1
      CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL: 1
      CLAUDE_CODE_MAX_RETRIES: 0
agents:
  wait: {bottle: clients, command: [sh, -c, "echo ready; cat"]}
`

func newToken() string { return "ghp_" + strings.ToLower(rand.Text()) + rand.Text()[:10] }

// withToken are clients that use TOKEN.
var withToken = []client{
	{tool: "curl", what: "header", script: `curl -sSf -H "Authorization: Bearer $TOKEN" $BASE/`},
	{tool: "curl", what: "Basic", script: `curl -sSf -u "me:$TOKEN" $BASE/`},
	{tool: "wget", what: "header", script: `wget -qO- --header "Authorization: Bearer $TOKEN" $BASE/`},
	{tool: "git", what: "clone, push and LFS", script: gitLFS},
	{tool: "gh", what: "token", script: `GH_HOST=packages.test GH_ENTERPRISE_TOKEN=$TOKEN gh api user`},
	{tool: "npm", what: "token of a variable", script: npmrc + `echo '//packages.test/npm/:_authToken=${TOKEN}' >>.npmrc; node ` + modules +
		`npm/bin/npm-cli.js install --fetch-retries=0 --no-audit --no-fund bottle-demo; ` + require},
	{tool: "pip", what: "token in a URL", script: `pip install -q --retries 0 --break-system-packages --target x --index-url https://me:$TOKEN@packages.test/pypi/simple bottle-demo; ` + pipDemo},
	{tool: "go", what: "token in a URL", script: `GOPROXY_URL=https://me:$TOKEN@packages.test/go; ` + goToken},
	{tool: "Node.js 24", what: "fetch", script: node24 + nodeToken},
	{tool: "Node.js 22", what: "fetch", script: node22 + nodeToken},
	{tool: "undici", what: "20: fetch", script: `NODE_PATH=` + modules + ` ` + node20 + ` -e '` + undici + `({})); ` + fetchToken + `'`},
	{tool: "undici", what: "18: fetch", script: `NODE_PATH=` + modules + ` ` + node18 + ` -e '` + strings.Replace(undici, `"undici"`, `"undici6"`, 1) + `({})); ` + fetchToken + `'`},
	{tool: "Bun", what: "fetch", script: bun + nodeToken},
	{tool: "Deno", what: "fetch", script: deno + ` eval 'console.log(await (await fetch(Deno.env.get("BASE"), {headers: {authorization: "Bearer " + Deno.env.get("TOKEN")}})).text())'`},
	// requests replaces a header by what a netrc has for the host.
	{tool: "Python requests", what: "Basic", script: python3 + `import requests as r; print(r.get(e["BASE"], auth=("me", e["TOKEN"])).text)'`},
	{tool: "Python httpx", what: "header", script: python3 + `import httpx as r; print(r.get(e["BASE"], headers={"Authorization": "Bearer " + e["TOKEN"]}).text)'`},
	{tool: "Java", what: "HttpClient", needs: `export JAVA_TOOL_OPTIONS="$DOC_JAVA_TOOL_OPTIONS"`, script: javaToken},
}

const (
	fetchToken = `fetch(process.env.BASE, {headers: {authorization: "Bearer " + process.env.TOKEN}}).then(r => r.text()).then(console.log)`
	nodeToken  = ` -e '` + fetchToken + `'`
	python3    = `python3 -c 'from os import environ as e; `
	pipDemo    = `PYTHONPATH=x python3 -c 'import bottle_demo; print(bottle_demo.says)'`
	goToken    = `export GOROOT=/opt/go PATH=/opt/go/bin:$PATH GOPATH=$PWD/go GOCACHE=$PWD/cache GOTOOLCHAIN=local GOPROXY=$GOPROXY_URL GONOSUMDB=* GOFLAGS=-modcacherw
go mod download example.com/demo@v1.0.0; cat go/pkg/mod/example.com/demo@v1.0.0/demo.go`
	// javaToken needs no trust store of its own: the bottle's authority is in that of the image.
	javaToken = `cat >Get.java <<'END'
import java.net.*; import java.net.http.*;
class Get { public static void main(String[] args) throws Exception {
  var request = HttpRequest.newBuilder(URI.create(System.getenv("BASE"))).header("Authorization", "Bearer " + System.getenv("TOKEN")).build();
  System.out.println(HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString()).body());
} }
END
java Get.java`
	// gitLFS stores a file in a repository and gets it back. The server returns the request's
	// credentials for the transfer, as some forges do.
	gitLFS = `export HOME=$PWD; url=https://me:$TOKEN@packages.test/git/demo.git branch=b$RANDOM; git config --global user.name a; git config --global user.email a@b.test
git lfs install >/dev/null; git clone -q $url w 2>/dev/null; cd w; git lfs track '*.bin' >/dev/null; head -c 2000000 /dev/urandom >big.bin
git add .; git commit -qm big; git push -q origin HEAD:$branch; cd ..
git clone -q -b $branch $url v; cmp w/big.bin v/big.bin; git -C v lfs ls-files | grep big.bin; echo '` + says + `'`
)

// withLogin are clients that use the copy of a file of logins, the name of which is in needs.
var withLogin = []client{
	{tool: "curl", what: "netrc", needs: "netrc", script: `curl -sSf -n $BASE/`},
	{tool: "git", what: "netrc", needs: "netrc", script: `git ls-remote $BASE/git/demo.git >x; grep -q refs/heads x; echo '` + says + `'`},
	{tool: "Python requests", what: "netrc", needs: "netrc", script: python3 + `import requests as r; print(r.get(e["BASE"]).text)'`},
	{tool: "pip", what: "netrc", needs: "netrc", script: `pip install -q --retries 0 --no-input --break-system-packages --no-cache-dir --target x --index-url $BASE/pypi/simple bottle-demo; ` + pipDemo},
	{tool: "go", what: "netrc", needs: "netrc", script: `GOPROXY_URL=$BASE/go; ` + goToken},
	{tool: "npm", what: "its login", needs: "npm", script: `export npm_config_cache=$PWD/cache PATH=/opt/node24/bin:$PATH; node ` + modules + `npm/bin/npm-cli.js install --fetch-retries=0 --no-audit --no-fund bottle-demo; ` + require},
	{tool: "gh", what: "its login", needs: "gh", script: `GH_HOST=packages.test gh api user`},
	{tool: "skopeo", what: "docker's login", needs: "docker", script: `skopeo inspect --raw docker://packages.test/demo:1`},
}

// claudeCode is the row of Claude Code, whose requests reach a mock of the API.
const claudeCode = "Claude Code"

// wrong is a secret that no server accepts.
const wrong = "ghp_wrongwrongwrongwrongwrongwrongwrong0"

// secretScene is a bottle whose agent has placeholders, and the server that needs the values.
type secretScene struct {
	*bytesearch.Search
	t      *testing.T
	server *private
	values map[string]string // by name
	files  string            // the directory of the user's files of logins
}

// TestSecretsOfClients has each client send a request that needs a secret which it does not
// have, with the secret in a variable and in the program's own file of logins. In each control
// it has another value. Afterwards the values are nowhere where the agent could read them; the
// control is the value that it was given.
func TestSecretsOfClients(t *testing.T) {
	leakcheck.Check(t)
	s := newSecretScene(t)
	logins := s.writeLogins()
	cmd := start(t, strings.Replace(secretsConfig, "LOGINS", "["+strings.Join(logins, ", ")+"]", 1), s.environ()...)

	for _, c := range inSecretsImage(withToken) {
		script := c.script
		if c.needs != "" {
			script = c.needs + "\n" + script
		}
		s.wantKey(c, script, "export TOKEN="+wrong+"; "+script, "TOKEN")
	}
	for _, c := range inSecretsImage(withLogin) {
		if slices.Contains(logins, c.needs) {
			s.wantKey(c, c.script, "export HOME=$PWD; "+c.script, c.needs)
		}
	}
	s.wantClaude("key", `claude -p hello`, "KEY")
	s.wantClaude("login", `unset ANTHROPIC_API_KEY; claude -p hello`, "claude")
	many := inside(t, `curl -sS -o /dev/null -w "%{http_code}\n" -H "Authorization: Bearer $TOKEN" "$BASE/?n=[1-500]" | sort | uniq -c`)
	if strings.TrimSpace(many.out) != "500 200" {
		t.Errorf("500 requests: %s%s", many.out, many.errs)
	}
	s.wantNowhere(cmd.Process.Pid)
}

func inSecretsImage(clients []client) []client {
	return slices.DeleteFunc(slices.Clone(clients), func(c client) bool { return secretsTools != nil && !slices.Contains(secretsTools, c.tool) })
}

func newSecretScene(t *testing.T) *secretScene {
	t.Helper()
	s := &secretScene{Search: bytesearch.New(t), t: t, values: map[string]string{}, files: t.TempDir()}
	for _, name := range []string{"TOKEN", "KEY", "GIVEN", "netrc", "npm", "gh", "docker", "claude", "refresh"} {
		value := newToken()
		if name == "KEY" || name == "claude" || name == "refresh" {
			value = "sk-ant-api03-" + newToken()
		}
		s.values[name] = value
		s.Add(name, value)
	}
	s.server = servePrivate(t, s.values)
	return s
}

func (s *secretScene) environ() []string {
	return []string{
		"MINE=" + s.values["TOKEN"], "KEY=" + s.values["KEY"], "GAVE=" + s.values["GIVEN"],
		"NETRC=" + s.path("netrc"), "NPM_CONFIG_USERCONFIG=" + s.path("npmrc"), "GH_CONFIG_DIR=" + s.files, "DOCKER_CONFIG=" + s.files, "CLAUDE_CONFIG_DIR=" + s.files,
	}
}

func (s *secretScene) path(name string) string { return filepath.Join(s.files, name) }

// writeLogins writes the user's files, as the programs write them, and returns their names.
func (s *secretScene) writeLogins() []string {
	basic := base64.StdEncoding.EncodeToString([]byte("me:" + s.values["docker"]))
	for name, text := range map[string]string{
		"netrc":       "machine packages.test login me password " + s.values["netrc"] + "\n",
		"npmrc":       "registry=https://packages.test/npm/\n//packages.test/npm/:_authToken=" + s.values["npm"] + "\n",
		"hosts.yml":   "packages.test:\n    user: me\n    oauth_token: " + s.values["gh"] + "\n    git_protocol: https\n",
		"config.json": `{"auths": {"packages.test": {"auth": "` + basic + `"}}}`,
		".credentials.json": fmt.Sprintf(`{"claudeAiOauth": {"accessToken": %q, "refreshToken": %q, "expiresAt": 4102444800000, "scopes": ["user:inference", "user:profile"], "subscriptionType": "max"}}`,
			s.values["claude"], s.values["refresh"]),
	} {
		must(s.t, os.WriteFile(s.path(name), []byte(text), 0o600))
	}
	return []string{"claude", "docker", "gh", "netrc", "npm"}
}

// wantKey checks that a script prints what only a request with a secret gets, and that the
// control does not.
func (s *secretScene) wantKey(c client, script, control, secret string) {
	s.t.Run(c.tool+" "+c.what, func(t *testing.T) {
		if r := inside(t, control); r.code == 0 && strings.Contains(r.out, says) {
			t.Errorf("it works without the secret: %s", r.out)
		}
		before := s.server.accepted(secret)
		r := inside(t, script)
		if r.code != 0 || !strings.Contains(r.out, says) {
			t.Errorf("exit %d, want %q in\n%s\n%s", r.code, says, r.out, r.errs)
		}
		if s.server.accepted(secret) == before {
			t.Errorf("no request had %s", secret)
		}
		for name, value := range s.values {
			if name != "GIVEN" && strings.Contains(r.out+r.errs, value) {
				t.Errorf("the agent sees %s:\n%s%s", name, r.out, r.errs)
			}
		}
	})
}

// wantClaude is wantKey for Claude Code, whose server is a mock that accepts every key and
// records its hash.
func (s *secretScene) wantClaude(what, script, secret string) {
	s.t.Run(claudeCode+" "+what, func(t *testing.T) {
		log := filepath.Join(os.Getenv("LAB_STATE"), "world/messages.jsonl")
		before, err := os.ReadFile(log)
		must(t, err)
		if r := inside(t, script); r.code != 0 || len(strings.TrimSpace(r.out)) == 0 {
			t.Errorf("exit %d\n%s\n%s", r.code, r.out, r.errs)
		}
		after, err := os.ReadFile(log)
		must(t, err)
		requests := 0
		for line := range strings.Lines(string(after[len(before):])) {
			var m struct{ Key string }
			must(t, json.Unmarshal([]byte(line), &m))
			requests++
			if m.Key != hashOf(s.values[secret]) {
				t.Error("a request has another key")
			}
		}
		if requests == 0 {
			t.Error("no request")
		}
	})
}

// wantNowhere searches for the values in all that an agent's processes, memory and files
// consist of. pid is bottle's process, to which the user has given them.
func (s *secretScene) wantNowhere(pid int) {
	t := s.t
	all := append(s.Processes(), s.Memory(bottleName)...)
	// What agents write to their root file systems is in files of gVisor's.
	written, err := filepath.Glob(filepath.Join(os.Getenv("LAB_DISK"), "containerd/*/snapshots/*/fs/.gvisor.filestore.*"))
	must(t, err)
	if len(written) == 0 {
		t.Error("no file has what agents have written")
	}
	for _, name := range append(written, s.Roots()[2], "/run/bottle") {
		all = append(all, s.Files(name)...)
	}
	found := map[string]bool{}
	for _, f := range all {
		name, _, _ := strings.Cut(f.Form, ", ")
		inMemory := strings.HasPrefix(f.Place, "memory of ")
		switch {
		case f.Place == "environ of "+strconv.Itoa(pid), strings.HasPrefix(f.Place, s.files+"/"):
		case strings.HasSuffix(f.Place, bottleName+"/proxy/config/secrets.json") && name != "GIVEN" && name != "refresh":
			found[name] = true
		case name == "GIVEN" && (inMemory || strings.HasSuffix(f.Place, bottleName+"/guest/env")):
			found["GIVEN"] = found["GIVEN"] || inMemory
		default:
			t.Errorf("%s: %s", f.Place, f.Form)
		}
	}
	for name := range s.values {
		if !found[name] && name != "refresh" {
			t.Errorf("the search does not find %s where it must be", name)
		}
	}
}
