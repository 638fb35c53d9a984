package e2e

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/agents"
	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/internal/segment"
)

var update = flag.Bool("update", false, "rewrite the table of results in docs/agents.md")

// agentTask is the command line with which an agent does one task and ends, by kind.
var agentTask = map[string][]string{
	"amp":      {"-x", "say hello"},
	"claude":   {"-p", "say hello"},
	"cline":    {"say hello to all"},
	"codex":    {"exec", "--skip-git-repo-check", "say hello"},
	"copilot":  {"-p", "say hello"},
	"gemini":   {"-p", "say hello"},
	"opencode": {"run", "say hello"},
	"qwen":     {"say hello"},
}

// Marks that the mock of the APIs looks for.
const (
	markPrompt = "BOTTLE-TEST-PROMPT"
	markSkill  = "BOTTLE-TEST-SKILL"
)

// agentResult is how far an agent got: the host of its first request with its login,
// whether a request had the prompt and the skill, and whether it started its MCP server.
type agentResult struct {
	host               string
	prompt, skill, mcp bool
}

// TestAgents starts every agent that bottle can install under gVisor, each up to its
// first requests at a mock of its API, and compares the results with docs/agents.md.
func TestAgents(t *testing.T) {
	leakcheck.Check(t)
	var names []string
	for _, name := range agents.Names() {
		if agents.Get(name).Image != nil {
			names = append(names, name)
		}
	}
	results := make([]agentResult, len(names))
	seen, asked := labtest.World(t), messages(t)
	t.Run("kinds", func(t *testing.T) {
		for i, name := range names {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				runAgent(t, name)
				if name == agents.Default {
					results[i] = messagesResult(asked())
				} else {
					results[i] = apiResult(seen(), agents.Get(name))
				}
				results[i].mcp = slices.ContainsFunc(seen(), func(e labtest.WorldEvent) bool { return e.Path == "/mcp-"+name })
				if results[i].host == "" {
					t.Error("no request with the login")
				}
			})
		}
	})
	compareResults(t, names, results)
}

// runAgent runs an agent of a kind, with a prompt and a skill.
func runAgent(t *testing.T, kind string) {
	k := agents.Get(kind)
	u := newUser(t)
	home := t.TempDir()
	skill := filepath.Join(k.Place(k.Skills, home, ""), "marked")
	if err := os.MkdirAll(skill, 0o755); err != nil {
		t.Fatal(err)
	}
	text := "---\nname: marked\ndescription: " + markSkill + " when a test wants it.\n---\n\nNothing.\n"
	if err := os.WriteFile(filepath.Join(skill, "SKILL.md"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	u.write("bottle.yaml", fmt.Sprintf(`
version: 1
bottles:
  dev:
    image: bottle-agents:latest
    env: {NODE_EXTRA_CA_CERTS: /usr/local/share/ca-certificates/lab.crt, CLAUDE_CODE_MAX_RETRIES: 0, %s: {from: TEST_KEY}}
    egress: {allow: [allowed.test]}
agents:
  %s:
    kind: %[2]s
    bottle: dev
    unattended: true
    prompt: %s
    skills: [marked]
`, k.Logins[0].Variable, kind, markPrompt)+mcpServer(k))
	u = u.with("HOME="+home, "TEST_KEY="+testKey)
	r := u.run(kind, agentTask[kind]...)
	t.Logf("exit %d\n%s%s", r.code, r.stdout, r.stderr)
	if strings.Contains(r.stdout+r.stderr, testKey) {
		t.Error("the key is shown")
	}
}

// mcpServer returns an MCP server for the manifest that makes a request when it is started, and
// speaks no MCP.
func mcpServer(k *agents.Kind) string {
	if k.MCP == nil {
		return ""
	}
	script := fmt.Sprintf("exec 3<>/dev/tcp/%s/%d && printf 'GET http://allowed.test/mcp-%s HTTP/1.1\\r\\nHost: allowed.test\\r\\nConnection: close\\r\\n\\r\\n' >&3 && cat <&3 >&2; sleep 2",
		segment.Proxy.Addr(), segment.ProxyPort, k.Name)
	return fmt.Sprintf("    mcp: {marked: {command: [bash, -c, %q]}}\n", script)
}

func messagesResult(requests []message) agentResult {
	system, texts := apiTexts(requests)
	if len(requests) == 0 {
		return agentResult{}
	}
	return agentResult{host: "api.anthropic.com", prompt: strings.Contains(system, markPrompt), skill: strings.Contains(system+texts, markSkill)}
}

// apiResult takes the requests to the hosts of a kind. No two kinds have the same.
func apiResult(events []labtest.WorldEvent, k *agents.Kind) agentResult {
	hosts := k.HostsWith(func(string) bool { return false })
	var r agentResult
	for _, e := range events {
		if e.Event != "api" || !slices.Contains(hosts, e.Host) {
			continue
		}
		if e.Type != "none" && r.host == "" {
			r.host = e.Host
		}
		r.prompt = r.prompt || strings.Contains(e.Text, markPrompt)
		r.skill = r.skill || strings.Contains(e.Text, markSkill)
	}
	return r
}

// compareResults compares the results with the table in docs/agents.md.
func compareResults(t *testing.T, names []string, results []agentResult) {
	t.Helper()
	const docs = "../../../docs/agents.md"
	yes := map[bool]string{true: "yes", false: "no"}
	var table strings.Builder
	table.WriteString("\n| kind | version | login | first request with the login | prompt sent | skill sent | MCP server started |\n|---|---|---|---|---|---|---|\n")
	for i, name := range names {
		k := agents.Get(name)
		_, version, _ := strings.Cut(k.Image.Args[0], "=")
		r := results[i]
		fmt.Fprintf(&table, "| `%s` | %s | `%s` | %s | %s | %s | %s |\n", name, version, k.Logins[0].Variable, r.host, yes[r.prompt], yes[r.skill], yes[r.mcp])
	}
	table.WriteString("\n")
	text, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, _ := strings.Cut(string(text), "<!-- tested -->\n")
	old, after, ok := strings.Cut(rest, "<!-- end -->\n")
	switch {
	case !ok:
		t.Fatalf("%s has no table of results", docs)
	case old == table.String():
	case !*update || t.Failed():
		t.Errorf("the results differ from %s (rewrite with -update):\n%s\nwant\n%s", docs, table.String(), old)
	default:
		if err := os.WriteFile(docs, []byte(before+"<!-- tested -->\n"+table.String()+"<!-- end -->\n"+after), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
