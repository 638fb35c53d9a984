package clients

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/manifest"
)

func TestMain(m *testing.M) { os.Exit(labtest.Main(m)) }

const (
	bottleName = "claude-bottle-clients"
	document   = "../../docs/clients.md"
)

// config allows the server of packages and the world's git host. CA and the
// variables before it make clients trust the world's authority; real hosts do not
// need them.
const config = `
version: 1
bottles:
  clients:
    image: ` + image + `
    egress: {allow: [allowed.test, "allowed.test:8443", "allowed.test:8080", git.allowed.test]}
    env:
      NODE_EXTRA_CA_CERTS: /usr/local/share/ca-certificates/lab.crt
      DENO_CERT: /usr/local/share/ca-certificates/lab.crt
      CA: /usr/local/share/ca-certificates/lab.crt
      BASE: ` + secureURL + `
      PLAIN: ` + plainURL + `
agents:
  wait: {bottle: clients, command: [sh, -c, "echo ready; cat"]}
`

// injectConfig has the same clients use hosts that the proxy terminates TLS for, with
// bottle's own settings for their authorities. CA is for programs that need one.
var injectConfig = strings.NewReplacer(
	"      NODE_EXTRA_CA_CERTS: /usr/local/share/ca-certificates/lab.crt\n", "",
	"      DENO_CERT: /usr/local/share/ca-certificates/lab.crt\n", "",
	"CA: /usr/local/share/ca-certificates/lab.crt", `CA: /.bottle/ca.pem
      TOKEN: {from: CLIENTS_TOKEN, inject: ["allowed.test:8443", git.allowed.test]}`,
).Replace(config)

// longest limits one client's time, on a busy machine.
const longest = 4 * time.Minute

// start launches the bottle with variables for bottle itself, and returns it. It ends with
// the test.
func start(t *testing.T, config string, env ...string) *exec.Cmd {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "bottle.yaml"), []byte(config), 0o600))
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), labtest.Program(t), "run", "wait", "--proxy", "builtin", "--yes", "--trust", "--name", bottleName)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = in.Close() // it may have ended
		_, _ = io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v\n%s", err, &errs)
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the agent said %q, %v\n%s", line, err, &errs)
	}
	return cmd
}

type result struct {
	out, errs string
	code      int
}

func run(t *testing.T, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), longest)
	defer cancel()
	cmd := exec.CommandContext(ctx, labtest.Program(t), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// inside runs a script in the bottle, in an empty directory, with the document's
// variables as DOC_NAME.
func inside(t *testing.T, script string) result {
	t.Helper()
	args := []string{"exec", "-T"}
	for name, value := range documented(t) {
		args = append(args, "-e", "DOC_"+name+"="+value)
	}
	return run(t, append(args, bottleName, "bash", "-ec", "cd $(mktemp -d -p /workspace); "+script)...)
}

// documented returns the variables that the document recommends.
func documented(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(document)
	must(t, err)
	example := regexp.MustCompile("(?ms)^```yaml\n(env:.*?)^```$").FindSubmatch(text)
	if example == nil {
		t.Fatalf("%s has no example of variables", document)
	}
	m, err := manifest.Parse(document, []byte("version: 1\nbottles:\n  b:\n    "+strings.ReplaceAll(string(example[1]), "\n", "\n    ")))
	must(t, err)
	out := map[string]string{}
	for _, v := range m.Bottles["b"].Env {
		out[v.Name] = *v.Literal
	}
	return out
}

// inImage returns the cases whose tools the image has.
func inImage() []client {
	if tools == nil {
		return cases
	}
	return slices.DeleteFunc(slices.Clone(cases), func(c client) bool {
		// The server of serveOwn needs Python.
		return !slices.Contains(tools, c.tool) || strings.HasPrefix(c.script, serveOwn)
	})
}

// TestClients has each client fetch something through the proxy.
func TestClients(t *testing.T) {
	leakcheck.Check(t)
	serve(t)
	start(t, config)
	runClients(t, inImage())
}

// TestInjectedClients has each client fetch the same from hosts with an injected secret,
// which it can only if it trusts the bottle's authority.
func TestInjectedClients(t *testing.T) {
	leakcheck.Check(t)
	serve(t)
	start(t, injectConfig, "CLIENTS_TOKEN="+newToken())
	runClients(t, inImage())
}

func runClients(t *testing.T, clients []client) {
	t.Helper()
	for _, c := range clients {
		t.Run(c.tool+" "+c.what, func(t *testing.T) {
			began := time.Now()
			if c.needs != "" || c.defaults != "" {
				control := c.script
				if c.defaults != "" {
					control = "unset " + c.defaults + "\n" + c.script
				}
				if r := inside(t, control); r.code == 0 && strings.Contains(r.out, c.want) {
					t.Errorf("it works without its setup: %s", r.out)
				}
			}
			script := c.script
			if c.needs != "" {
				script = c.needs + "\n" + c.script
			}
			switch r := inside(t, script); {
			case c.want == "" && r.code == 0:
				t.Errorf("it works, but the document says that it does not: %s", r.out)
			case c.want != "" && (r.code != 0 || !strings.Contains(r.out, c.want)):
				t.Errorf("exit %d, want %q in\n%s\n%s", r.code, c.want, r.out, r.errs)
			}
			for _, refused := range refusals(t, began) {
				t.Logf("refused: %s", refused)
			}
			t.Logf("%v", time.Since(began).Round(10*time.Millisecond))
		})
	}
}

// refusals lists the requests that the proxy refused: what a client does without being asked.
func refusals(t *testing.T, since time.Time) []string {
	t.Helper()
	var out []string
	for line := range strings.Lines(run(t, "egress", bottleName, "--denied", "--json", "--since", since.UTC().Format(time.RFC3339Nano)).out) {
		var e struct{ Destination, Reason string }
		must(t, json.Unmarshal([]byte(line), &e))
		out = append(out, e.Destination+": "+e.Reason)
	}
	return out
}

// TestDocument checks that the document lists exactly the tools of the table as tested.
func TestDocument(t *testing.T) {
	text, err := os.ReadFile(document)
	must(t, err)
	var tested, want []string
	for _, row := range regexp.MustCompile(`(?m)^\| ([^|]+) \|.*\| tested \|$`).FindAllSubmatch(text, -1) {
		tested = append(tested, string(row[1]))
	}
	for _, c := range cases {
		want = append(want, c.tool)
	}
	slices.Sort(tested)
	slices.Sort(want)
	if want = slices.Compact(want); !slices.Equal(tested, want) {
		t.Errorf("the document lists %q,\nthe test has       %q", tested, want)
	}
}
