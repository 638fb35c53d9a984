package egress

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/bot-bottle/bottle/egress/hostrule"
	"github.com/bot-bottle/bottle/egress/inject"
)

// ruleScene is a proxy with rules for example.com, whose server is upstream.
type ruleScene struct {
	*testProxy
	t      *testing.T
	target string // of example.com
	roots  string // a file of the authorities that the client trusts
	client *http.Client
	config Config

	mu   sync.Mutex
	seen []string // requests that have reached the server
}

// newRuleScene starts a proxy. Without rules it allows everything of the host.
func newRuleScene(t *testing.T, http2 bool, handler http.Handler, rules ...hostrule.Rule) *ruleScene {
	t.Helper()
	s := &ruleScene{t: t}
	upstream := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, r.Method+" "+r.RequestURI)
		s.mu.Unlock()
		handler.ServeHTTP(w, r)
	}))
	upstream.EnableHTTP2 = http2
	upstream.Config.ErrorLog = log.New(io.Discard, "", 0) // connections that the proxy does not use
	upstream.StartTLS()
	t.Cleanup(upstream.Close)
	s.target = net.JoinHostPort("example.com", strconv.Itoa(upstream.Listener.Addr().(*net.TCPAddr).Port))
	ca, err := inject.NewCA([]string{"example.com"})
	if err != nil {
		t.Fatal(err)
	}
	data, err := inject.Encode(ca, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: upstream.Certificate().Raw})
	files := &Inject{Secrets: filepath.Join(dir, "secrets.json"), Roots: filepath.Join(dir, "roots.pem")}
	s.roots = filepath.Join(dir, "client.pem")
	for name, data := range map[string][]byte{files.Secrets: data, files.Roots: root, s.roots: append(ca.CertPEM(), root...)} {
		if err := os.WriteFile(name, data, 0o400); err != nil {
			t.Fatal(err)
		}
	}
	s.config = Config{Inject: files, Entries: Entries{AllowPrivate: []string{"127.0.0.0/8"}}}
	if len(rules) == 0 {
		s.config.Allow = []string{s.target}
	}
	for _, r := range rules {
		r.Host = s.target
		s.config.Rules = append(s.config.Rules, r)
	}
	s.testProxy = startProxy(t, s.config)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.CertPEM())
	pool.AddCert(upstream.Certificate())
	transport := &http.Transport{
		Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: s.addr}), TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: http2,
	}
	t.Cleanup(transport.CloseIdleConnections)
	s.client = &http.Client{Transport: transport, Timeout: waitTimeout}
	return s
}

// do sends a request and returns its status, its body, and whether its connection was used
// before.
func (s *ruleScene) do(method, path string, edit func(*http.Request)) (status int, body string, reused bool) {
	s.t.Helper()
	r, err := http.NewRequestWithContext(httptrace.WithClientTrace(s.t.Context(), &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused },
	}), method, "https://"+s.target+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if edit != nil {
		edit(r)
	}
	res, err := s.client.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return res.StatusCode, string(data), reused
}

// requests returns what has reached the server since the last call.
func (s *ruleScene) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := s.seen
	s.seen = nil
	return seen
}

var echoPath = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	_, _ = fmt.Fprintf(w, "%s %s %s", r.Method, r.RequestURI, body)
})

// TestRequestRules sends requests that rules allow and refuse, with both versions of HTTP
// and on connections that are kept alive. In the control, without rules, the server gets
// every one of them.
func TestRequestRules(t *testing.T) {
	rules := []hostrule.Rule{{Methods: []string{"GET"}, Paths: []string{"/repos/me/x/**"}}, {Methods: []string{"POST"}, Paths: []string{"/issues"}}}
	cases := []struct {
		method, path string
		edit         func(*http.Request)
		status       int
	}{
		{method: "GET", path: "/repos/me/x/a%20b?q=/../z", status: 200},
		{method: "HEAD", path: "/repos/me/x/a", status: 200},
		{method: "POST", path: "/issues", status: 200},
		{method: "DELETE", path: "/repos/me/x/a", status: 403},
		{method: "GET", path: "/repos/me/other", status: 403},
		{method: "POST", path: "/repos/me/x/a", status: 403},
		{method: "GET", path: "/repos/me/x/..%2f..%2fother", status: 400},
		{method: "GET", path: "/repos/me/x/%2e%2e/other", status: 400},
		{method: "POST", path: "/issues", status: 400, edit: func(r *http.Request) { r.Header.Set("X-HTTP-Method-Override", "DELETE") }},
		{method: "POST", path: "/issues?_method=DELETE", status: 400},
		{method: "GET", path: "/repos/me/x/a", status: 400, edit: func(r *http.Request) { r.Header.Set("X-Original-URL", "/admin") }},
		{method: "GET", path: "/repos/me/x/last", status: 200},
	}
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("http2=%v", http2), func(t *testing.T) {
			s := newRuleScene(t, http2, echoPath, rules...)
			for i, c := range cases {
				status, body, reused := s.do(c.method, c.path, c.edit)
				if seen := s.requests(); status != c.status || (len(seen) > 0) != (c.status == 200) {
					t.Errorf("%s %s: %d %s; the server got %q", c.method, c.path, status, body, seen)
				}
				if c.status == 200 && c.method != "HEAD" && !strings.HasPrefix(body, c.method+" "+c.path+" ") {
					t.Errorf("%s %s became %s", c.method, c.path, body)
				}
				if c.status != 200 && !strings.HasPrefix(body, "bottle: ") {
					t.Errorf("answer %s", body)
				}
				if i > 0 && !reused {
					t.Errorf("%s %s had a connection of its own", c.method, c.path)
				}
			}
			e := s.log.wait(t, "refusal", func(e Entry) bool { return e.Verdict() == VerdictRefused })
			if e.Scanner != ScannerRules || e.Method != http.MethodDelete || e.Status != http.StatusForbidden || !strings.HasSuffix(e.URL, "/repos/me/x/a") || e.Target != s.target {
				t.Errorf("logged %+v", e)
			}
			sent := s.log.waitEvent(t, EventRequest)
			if sent.Method != http.MethodGet || sent.Status != http.StatusOK || sent.Bytes == 0 || sent.Verdict() != VerdictSent {
				t.Errorf("logged %+v", sent)
			}
		})
		t.Run(fmt.Sprintf("control, http2=%v", http2), func(t *testing.T) {
			s := newRuleScene(t, http2, echoPath)
			for _, c := range cases {
				if status, _, _ := s.do(c.method, c.path, c.edit); status != 200 || len(s.requests()) != 1 {
					t.Errorf("%s %s was refused: %d", c.method, c.path, status)
				}
			}
		})
	}
}

// TestRulesInRawTunnel: what a client writes into the tunnel itself.
func TestRulesInRawTunnel(t *testing.T) {
	allowed := "POST /issues HTTP/1.1\r\nHost: TARGET\r\n"
	admin := "DELETE /admin HTTP/1.1\r\nHost: TARGET\r\n\r\n"
	for name, c := range map[string]struct {
		text string
		want []string // requests that reach the server
	}{
		"pipelined":          {allowed + "Content-Length: 2\r\n\r\nok" + admin, []string{"POST /issues"}},
		"request in a body":  {allowed + fmt.Sprintf("Content-Length: %d\r\nConnection: close\r\n\r\n", len(admin)) + admin, []string{"POST /issues"}},
		"two lengths":        {allowed + "Content-Length: 0\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n" + admin, []string{"POST /issues"}},
		"absolute form":      {"DELETE https://TARGET/issues HTTP/1.1\r\nHost: TARGET\r\nConnection: close\r\n\r\n", nil},
		"other Host":         {"POST /issues HTTP/1.1\r\nHost: other.example.com\r\nConnection: close\r\n\r\n", nil},
		"method in lower":    {"post /issues HTTP/1.1\r\nHost: TARGET\r\nConnection: close\r\n\r\n", nil},
		"space in a method":  {"DELETE POST /issues HTTP/1.1\r\nHost: TARGET\r\nConnection: close\r\n\r\n", nil},
		"upgrade":            {allowed + "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n" + admin, nil},
		"not the path alone": {"GET /issues/../admin HTTP/1.1\r\nHost: TARGET\r\nConnection: close\r\n\r\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := newRuleScene(t, false, echoPath, hostrule.Rule{Methods: []string{"POST"}, Paths: []string{"/issues"}})
			conn := tls.Client(s.connect(t, s.target), &tls.Config{RootCAs: s.client.Transport.(*http.Transport).TLSClientConfig.RootCAs, ServerName: "example.com"})
			if _, err := io.WriteString(conn, strings.ReplaceAll(c.text, "TARGET", s.target)); err != nil {
				t.Fatal(err)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			answers, _ := io.ReadAll(conn) // the proxy may reset what it does not read
			if got := s.requests(); !slices.Equal(got, c.want) {
				t.Errorf("the server got %q; answers:\n%s", got, answers)
			}
		})
	}
}

// TestRulesBindHost: a request in the tunnel of a host cannot be for another one, whose rules
// may allow more.
func TestRulesBindHost(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		s := newRuleScene(t, http2, echoPath, hostrule.Rule{Paths: []string{"/a"}})
		status, body, _ := s.do("GET", "/a", func(r *http.Request) { r.Host = "other.example.com" })
		if seen := s.requests(); status != http.StatusMisdirectedRequest || len(seen) > 0 {
			t.Errorf("http2=%v: %d %s; the server got %q", http2, status, body, seen)
		}
		if status, _, _ := s.do("GET", "/a", nil); status != http.StatusOK {
			t.Errorf("http2=%v: the host itself: %d", http2, status)
		}
		s.client.CloseIdleConnections()
	}
}

// TestRulesUpgrade: a websocket needs a rule that permits the upgrade, and is then passed on.
func TestRulesUpgrade(t *testing.T) {
	server := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(conn, buf)
	})
	for upgrade, want := range map[bool]int{true: http.StatusSwitchingProtocols, false: http.StatusForbidden} {
		s := newRuleScene(t, false, server, hostrule.Rule{Paths: []string{"/ws"}, Upgrade: upgrade})
		conn := tls.Client(s.connect(t, s.target), &tls.Config{RootCAs: s.client.Transport.(*http.Transport).TLSClientConfig.RootCAs, ServerName: "example.com"})
		if _, err := io.WriteString(conn, "GET /ws HTTP/1.1\r\nHost: "+s.target+"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(conn)
		res, err := http.ReadResponse(r, nil)
		if err != nil || res.StatusCode != want {
			t.Fatalf("upgrade: %v: %+v, %v", upgrade, res, err)
		}
		_ = res.Body.Close()
		if upgrade {
			hello := make([]byte, 5)
			if _, err := io.WriteString(conn, "hello"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(r, hello); err != nil || string(hello) != "hello" {
				t.Errorf("got %q, %v", hello, err)
			}
		}
		_ = conn.Close()
		if upgrade {
			if e := s.log.waitEvent(t, EventRequest); e.Status != want {
				t.Errorf("logged %+v", e)
			}
		}
	}
}

// TestRulesAreHTTPSOnly: plain HTTP to a host with rules is refused, also in a tunnel, and
// so are its other ports.
func TestRulesAreHTTPSOnly(t *testing.T) {
	s := newRuleScene(t, false, echoPath, hostrule.Rule{Methods: []string{"GET"}})
	res, body, _ := s.raw(t, "GET", "GET http://"+s.target+"/ HTTP/1.1\r\nHost: "+s.target+"\r\nConnection: close\r\n\r\n")
	if res.StatusCode != http.StatusForbidden || !strings.Contains(body, "https only") {
		t.Errorf("plain HTTP: %s %s", res.Status, body)
	}
	tunnel := s.connect(t, s.target)
	if _, err := io.WriteString(tunnel, "GET / HTTP/1.1\r\nHost: "+s.target+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if data, _ := io.ReadAll(tunnel); strings.Contains(string(data), "200 OK") {
		t.Errorf("plain HTTP in a tunnel: %s", data)
	}
	if res, body, _ := s.raw(t, "CONNECT", "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n"); res.StatusCode != http.StatusForbidden {
		t.Errorf("other port: %s %s", res.Status, body)
	}
	if got := s.requests(); len(got) > 0 {
		t.Errorf("the server got %q", got)
	}
}

// TestRulesReload: changed rules are in force for the next request on an open connection,
// and a proxy that cannot terminate a host does not let a tunnel to it pass.
func TestRulesReload(t *testing.T) {
	s := newRuleScene(t, true, echoPath, hostrule.Rule{Paths: []string{"/a"}})
	if status, _, _ := s.do("GET", "/a", nil); status != 200 {
		t.Fatal(status)
	}
	cfg := testConfig(s.config)
	cfg.Rules = []hostrule.Rule{{Host: s.target, Paths: []string{"/b"}}}
	if err := s.Reload(cfg); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{"/a": 403, "/b": 200} {
		if status, _, reused := s.do("GET", path, nil); status != want || !reused {
			t.Errorf("%s: %d, connection reused: %v", path, status, reused)
		}
	}
	port := strings.TrimPrefix(s.target, "example.com")
	cfg.Rules = append(cfg.Rules, hostrule.Rule{Host: "a.example.com" + port, Paths: []string{"/"}})
	if err := s.Reload(cfg); err != nil {
		t.Fatal(err)
	}
	res, body, _ := s.raw(t, "CONNECT", "CONNECT a.example.com"+port+" HTTP/1.1\r\nHost: a.example.com"+port+"\r\n\r\n")
	if res.StatusCode != http.StatusForbidden || !strings.Contains(body, "start the bottle again") {
		t.Errorf("a host that cannot be terminated: %s %s", res.Status, body)
	}
}

// TestRulesWhileLearning: a refused request is passed on and logged.
func TestRulesWhileLearning(t *testing.T) {
	s := newRuleScene(t, false, echoPath, hostrule.Rule{Paths: []string{"/a"}})
	cfg := testConfig(s.config)
	cfg.Learn = true
	if err := s.Reload(cfg); err != nil {
		t.Fatal(err)
	}
	if status, body, _ := s.do("DELETE", "/b", nil); status != 200 {
		t.Errorf("got %d %s", status, body)
	}
	e := s.log.waitEvent(t, EventWouldBlock)
	if e.Scanner != ScannerRules || e.Method != http.MethodDelete || !strings.HasSuffix(e.URL, "/b") {
		t.Errorf("logged %+v", e)
	}
}

// gitScene is a repository me/x behind a proxy with rules, and a clone of it.
type gitScene struct {
	*ruleScene
	dir string
}

// newGitScene serves repositories with git's own server.
func newGitScene(t *testing.T, http2 bool, rules ...hostrule.Rule) *gitScene {
	t.Helper()
	root := t.TempDir()
	s := &gitScene{dir: t.TempDir()}
	execPath, err := exec.CommandContext(t.Context(), "git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(execPath)), "git-http-backend"), Stderr: io.Discard,
		Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "HOME=" + root, "GIT_CONFIG_NOSYSTEM=1"},
	}
	s.ruleScene = newRuleScene(t, http2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// CGI needs a length (RFC 3875, section 4.1.2).
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
		backend.ServeHTTP(w, r)
	}), rules...)
	s.mustGit("", "init", "--quiet", "--initial-branch=main", s.dir)
	s.commit("one")
	for _, name := range []string{"x.git", "other.git"} {
		repo := filepath.Join(root, "me", name)
		s.mustGit("", "clone", "--quiet", "--bare", s.dir, repo)
		for _, branch := range []string{"bottle/old", "keep"} {
			s.mustGit(repo, "branch", branch, "main")
		}
		s.mustGit(repo, "config", "http.receivepack", "true")
		s.mustGit(repo, "config", "receive.advertisePushOptions", "true")
		s.mustGit(repo, "config", "receive.denyDeleteCurrent", "ignore")
	}
	s.mustGit("", "remote", "add", "origin", s.url("x"))
	s.commit("two")
	s.mustGit("", "tag", "v1")
	s.mustGit("", "checkout", "--quiet", "--orphan", "diverged")
	s.mustGit("", "commit", "--quiet", "--message", "diverged")
	s.mustGit("", "checkout", "--quiet", "main")
	return s
}

func (s *gitScene) url(repo string) string { return "https://" + s.target + "/me/" + repo }

// git runs git in a directory, by default the clone, and returns all output.
func (s *gitScene) git(dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(s.t.Context(), "git", args...)
	cmd.Dir = s.dir
	if dir != "" {
		cmd.Dir = dir
	}
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0", "https_proxy=http://" + s.addr, "GIT_SSL_CAINFO=" + s.roots,
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b.test", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b.test",
	}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	return string(out), err
}

func (s *gitScene) mustGit(dir string, args ...string) {
	s.t.Helper()
	if out, err := s.git(dir, args...); err != nil {
		s.t.Fatalf("git %q: %v\n%s", args, err, out)
	}
}

// commit commits a file of random bytes.
func (s *gitScene) commit(name string) {
	s.t.Helper()
	data := make([]byte, 256<<10)
	if _, err := rand.Read(data); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, name), data, 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.mustGit("", "add", name)
	s.mustGit("", "commit", "--quiet", "--message", name)
}

// TestGitRules runs git behind a proxy with rules. In the control, without rules, each
// command succeeds.
func TestGitRules(t *testing.T) {
	const refused = "remote: bottle: no rule for this host allows a push to "
	limited := hostrule.Rule{Git: hostrule.GitWrite, Repos: []string{"me/x"}, Push: []string{"refs/heads/bottle/*"}}
	readOnly := hostrule.Rule{Git: hostrule.GitRead, Repos: []string{"me/x"}}
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("http2=%v", http2), func(t *testing.T) {
			s, control, reader := newGitScene(t, http2, limited), newGitScene(t, http2), newGitScene(t, http2, readOnly)
			for _, c := range []struct {
				args string
				want string // of the refusal; empty: allowed
			}{
				{args: "fetch --quiet URL/x main"},
				{args: "fetch --quiet URL/x.git main"},
				{args: "fetch --quiet URL/other main", want: "remote: bottle: no rule for this host allows this repository"},
				{args: "push origin HEAD:bottle/new"},
				{args: "-c http.postBuffer=65536 push origin HEAD:bottle/chunked"},
				{args: "push --atomic origin HEAD:bottle/a HEAD:bottle/b"},
				{args: "push --force origin diverged:bottle/new"},
				{args: "push origin :bottle/old"},
				{args: "push origin HEAD:main", want: refused + "refs/heads/main"},
				{args: "-c http.postBuffer=65536 push origin HEAD:refs/heads/other", want: refused + "refs/heads/other"},
				{args: "push --force origin diverged:main", want: refused + "refs/heads/main"},
				{args: "push origin v1", want: refused + "refs/tags/v1"},
				{args: "push origin :keep", want: refused + "refs/heads/keep"},
				{args: "push origin HEAD:bottle/c HEAD:side", want: refused + "refs/heads/side"},
				{args: "push --push-option=merge origin HEAD:bottle/d", want: "remote: bottle: the push cannot be checked: it has push options"},
			} {
				args := func(s *gitScene) []string {
					return strings.Fields(strings.ReplaceAll(c.args, "URL", "https://"+s.target+"/me"))
				}
				out, err := s.git("", args(s)...)
				if (err == nil) != (c.want == "") || !strings.Contains(out, c.want) {
					t.Errorf("git %s: %v, want %q\n%s", c.args, err, c.want, out)
				}
				if strings.HasPrefix(c.want, refused) && !strings.Contains(out, "[remote rejected]") {
					t.Errorf("git %s does not say what was rejected:\n%s", c.args, out)
				}
				if out, err := control.git("", args(control)...); err != nil {
					t.Errorf("without rules git %s: %v\n%s", c.args, err, out)
				}
			}
			if out, err := reader.git("", "push", "origin", "HEAD:bottle/new"); err == nil || !strings.Contains(out, "remote: bottle: the repository is read-only here") {
				t.Errorf("git: read: %v\n%s", err, out)
			}
			reader.mustGit("", "fetch", "--quiet", "origin")
			if slices.ContainsFunc(reader.requests(), func(r string) bool { return strings.Contains(r, "receive-pack") }) {
				t.Error("a push has reached the server")
			}
			// What was refused has changed nothing.
			out, err := s.git("", "ls-remote", "--refs", "origin")
			for _, ref := range []string{"refs/heads/keep", "refs/heads/bottle/new", "refs/heads/bottle/chunked", "refs/heads/bottle/b"} {
				if !strings.Contains(out, ref+"\n") {
					t.Errorf("no %s: %v\n%s", ref, err, out)
				}
			}
			for _, ref := range []string{"refs/tags/v1", "refs/heads/side", "refs/heads/other", "refs/heads/bottle/c", "refs/heads/bottle/d", "refs/heads/bottle/old"} {
				if strings.Contains(out, ref+"\n") {
					t.Errorf("there is %s:\n%s", ref, out)
				}
			}
			if e := s.log.wait(t, "push", func(e Entry) bool { return e.Denied() && strings.Contains(e.Reason, "refs/heads/main") }); e.Scanner != ScannerRules || e.Method != http.MethodPost {
				t.Errorf("logged %+v", e)
			}
		})
	}
}

// TestNarrowedPolicy: a host with rules is not widened by other entries or by live changes.
func TestNarrowedPolicy(t *testing.T) {
	e := Entries{
		Allow: []string{"*.example.com"},
		Rules: []hostrule.Rule{{Host: "api.example.com", Methods: []string{"GET"}}, {Host: "API.example.com.", Paths: []string{"/a"}}, {Host: "b.test:8443", Git: "read"}},
	}
	p, err := e.Policy()
	if err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]struct{ allowed, narrowed bool }{
		"api.example.com:443": {true, true}, "API.EXAMPLE.COM.:443": {true, true}, "api.example.com:80": {false, false}, "x.api.example.com:443": {true, false},
		"b.test:8443": {true, true}, "b.test:443": {false, false},
	} {
		host, port, _ := strings.Cut(target, ":")
		n, _ := strconv.Atoi(port)
		if v := p.Check(host, n); v.Allowed != want.allowed || v.Narrowed != want.narrowed {
			t.Errorf("%s: %+v", target, v)
		}
	}
	for _, text := range []string{"api.example.com", "api.example.com:443", "api.example.com:80"} {
		bad := e
		bad.Allow = append(slices.Clone(e.Allow), text)
		var narrowed *NarrowedError
		if _, err := bad.Policy(); !errors.As(err, &narrowed) {
			t.Errorf("%s beside its rules: %v", text, err)
		}
		entry, err := ParseListEntry(text)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := e.Allowing(entry); !errors.As(err, &narrowed) {
			t.Errorf("allow %s: %v", text, err)
		}
	}
	host, err := ParseListEntry("api.example.com")
	if err != nil {
		t.Fatal(err)
	}
	denied, change, err := e.Denying(host)
	if err != nil || !slices.Equal(change.Added.Deny, []string{"api.example.com"}) {
		t.Fatalf("deny: %+v, %v", change, err)
	}
	if p, err := denied.Policy(); err != nil || p.Check("api.example.com", 443).Allowed {
		t.Errorf("allowed after deny: %v", err)
	}
	again, _, err := denied.Allowing(host)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := again.Policy(); err != nil || !p.Check("api.example.com", 443).Narrowed {
		t.Errorf("after deny and allow: %+v, %v", again, err)
	}
	e.SSH = []string{"b.test:8443"}
	if _, err := e.Policy(); err == nil {
		t.Error("ssh on the port of rules is no error")
	}
	e.SSH = nil
	if got := WithoutNarrowed([]string{"api.example.com", "x.test"}, e.Rules); !slices.Equal(got, []string{"x.test"}) {
		t.Errorf("got %q", got)
	}
	outside, err := e.Outside([]string{"*.example.com", "b.test:443"})
	if err != nil || !slices.Equal(outside, []string{"b.test:8443"}) {
		t.Errorf("outside: %q, %v", outside, err)
	}
}
