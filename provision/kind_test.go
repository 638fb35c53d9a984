package provision

import (
	"encoding/json"
	"io/fs"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/bot-bottle/bottle/agents"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/rootfile"
	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/manifest"
)

// kindAgent has a kind, a prompt and a skill.
func kindAgent(kind string) Agent {
	return Agent{
		Kind: agents.Get(kind), Prompt: "be brief",
		Skills: []rootfile.File{{Path: "review/SKILL.md", Mode: 0o644, Data: []byte("review")}},
	}
}

func fileAt(t *testing.T, files []rootfile.File, path string) rootfile.File {
	t.Helper()
	i := slices.IndexFunc(files, func(f rootfile.File) bool { return f.Path == path })
	if i < 0 {
		var paths []string
		for _, f := range files {
			paths = append(paths, f.Path)
		}
		t.Fatalf("missing %s in %q", path, paths)
	}
	return files[i]
}

// TestKindFiles: every kind's files can be written, into no file and into their own
// result, and each path is written once.
func TestKindFiles(t *testing.T) {
	img := Image{Home: "/home/x", WorkDir: "/workspace", UID: 1000}
	for _, name := range agents.Names() {
		for _, unattended := range []bool{false, true} {
			a := kindAgent(name)
			a.Unattended = unattended
			seen := map[string]bool{}
			for _, f := range a.kindFiles(img, img.Home) {
				if seen[f.Path] {
					t.Errorf("%s: %s twice", name, f.Path)
				}
				seen[f.Path] = true
				if f.Edit == nil {
					continue
				}
				first, err := f.Edit(nil)
				if err != nil {
					t.Fatalf("%s: %s: %v", name, f.Path, err)
				}
				again, err := f.Edit(first)
				if err != nil || string(again) != string(first) {
					t.Errorf("%s: %s: %v\n%s\n%s", name, f.Path, err, first, again)
				}
			}
		}
	}
}

// TestTrustAndSkills: the answer to each kind's question whether the working directory is trusted,
// and a skill, are where the agent looks for them. The settings of the image, such as its MCP
// servers, stay.
func TestTrustAndSkills(t *testing.T) {
	img := Image{Home: "/home/x", WorkDir: "/workspace", UID: 1000}
	// A kind without a trusted file asks no such question.
	kinds := map[string]struct{ skill, file, trusted string }{
		"aider":    {},
		"amp":      {".config/amp/skills", "", ""},
		"claude":   {".claude/skills", ".claude.json", `{"projects":{"/workspace":{"hasTrustDialogAccepted":true}}}`},
		"cline":    {".cline/skills", "", ""},
		"codex":    {".codex/skills", ".codex/config.toml", `{"projects":{"/workspace":{"trust_level":"trusted"}}}`},
		"copilot":  {".copilot/skills", ".copilot/config.json", `{"trustedFolders":["/workspace"]}`},
		"crush":    {".config/crush/skills", "", ""},
		"gemini":   {".gemini/skills", ".gemini/trustedFolders.json", `{"/workspace":"TRUST_FOLDER"}`},
		"goose":    {".config/goose/skills", "", ""},
		"opencode": {".config/opencode/skills", "", ""},
		"qwen":     {".qwen/skills", ".qwen/trustedFolders.json", `{"/workspace":"TRUST_FOLDER"}`},
	}
	for _, name := range agents.Names() {
		t.Run(name, func(t *testing.T) {
			want, ok := kinds[name]
			if !ok {
				t.Fatal("no expectation")
			}
			files := kindAgent(name).RootFiles(img)
			if want.skill != "" {
				if f := fileAt(t, files, "/home/x/"+want.skill+"/review/SKILL.md"); string(f.Data) != "review" || f.Root {
					t.Errorf("the skill: %+v", f)
				}
			}
			if want.file != "" {
				contains(t, edited(t, fileAt(t, files, "/home/x/"+want.file), ""), want.trusted)
			}
			for _, f := range kindAgent(name).kindFiles(img, img.Home) {
				if f.Edit == nil {
					continue
				}
				old := `{"mcpServers":{"mine":{"command":"server"}}}`
				if strings.HasSuffix(f.Path, ".toml") {
					old = "[mcpServers.mine]\ncommand = 'server'\n"
				}
				contains(t, edited(t, f, old), `{"mcpServers":{"mine":{"command":"server"}}}`)
			}
		})
	}
}

// TestMCPServers: the manifest's MCP servers are in the settings of each kind that has them, in its
// own format. They replace a server of their name, and others stay.
func TestMCPServers(t *testing.T) {
	img := Image{Home: "/home/x", WorkDir: "/workspace", UID: 1000}
	kinds := map[string]struct{ file, local, remote string }{
		"amp": {".config/amp/settings.json", `{"amp.mcpServers":{"docs":{"command":"node","args":["s.js","/workspace"],"env":{"LEVEL":"3"}}}}`,
			`{"amp.mcpServers":{"web":{"url":"https://m.test/x"}}}`},
		"claude": {".claude.json", `{"mcpServers":{"docs":{"type":"stdio","command":"node","args":["s.js","/workspace"],"env":{"LEVEL":"3"}}}}`,
			`{"mcpServers":{"web":{"type":"http","url":"https://m.test/x"}}}`},
		"cline": {".cline/data/settings/cline_mcp_settings.json", `{"mcpServers":{"docs":{"command":"node","args":["s.js","/workspace"],"env":{"LEVEL":"3"}}}}`,
			`{"mcpServers":{"web":{"type":"streamableHttp","url":"https://m.test/x"}}}`},
		"codex": {".codex/config.toml", `{"mcp_servers":{"docs":{"command":"node","args":["s.js","/workspace"],"env":{"LEVEL":"3"}}}}`,
			`{"mcp_servers":{"web":{"url":"https://m.test/x"}}}`},
		"copilot": {".copilot/mcp-config.json", `{"mcpServers":{"docs":{"type":"local","command":"node","args":["s.js","/workspace"],"env":{"LEVEL":"3"},"tools":["*"]}}}`,
			`{"mcpServers":{"web":{"type":"http","url":"https://m.test/x","tools":["*"]}}}`},
		"gemini": {".gemini/settings.json", `{"mcpServers":{"docs":{"command":"node","args":["s.js","/workspace"],"env":{"LEVEL":"3"}}}}`,
			`{"mcpServers":{"web":{"httpUrl":"https://m.test/x"}}}`},
		"opencode": {".config/opencode/opencode.json", `{"mcp":{"docs":{"type":"local","command":["node","s.js","/workspace"],"environment":{"LEVEL":"3"},"enabled":true}}}`,
			`{"mcp":{"web":{"type":"remote","url":"https://m.test/x","enabled":true}}}`},
		"qwen": {".qwen/settings.json", `{"mcpServers":{"docs":{"command":"node","args":["s.js","/workspace"],"env":{"LEVEL":"3"}}}}`,
			`{"mcpServers":{"web":{"httpUrl":"https://m.test/x"}}}`},
	}
	for _, name := range agents.Names() {
		want, ok := kinds[name]
		if k := agents.Get(name); ok != (k.MCP != nil) {
			t.Errorf("%s: servers %v, expected %v", name, k.MCP, ok)
		}
		if !ok {
			continue
		}
		a := kindAgent(name)
		a.MCP = []agents.Server{
			{Name: "docs", Command: []string{"node", "s.js", "{workdir}"}, Env: map[string]string{"LEVEL": "3"}},
			{Name: "web", URL: "https://m.test/x"},
		}
		key := a.Kind.MCP.Key
		old, mine := `{"`+key+`":{"mine":{"command":"server"},"web":{"command":"old"}}}`, `{"`+key+`":{"mine":{"command":"server"}}}`
		if a.Kind.MCP.Format == agents.TOML {
			old = "[" + key + ".mine]\ncommand = 'server'\n[" + key + ".web]\ncommand = 'old'\n"
		}
		got := edited(t, fileAt(t, a.RootFiles(img), "/home/x/"+want.file), old)
		for _, text := range []string{want.local, want.remote, mine} {
			contains(t, got, text)
		}
		if web := got[key].(map[string]any)["web"].(map[string]any); web["command"] != nil {
			t.Errorf("%s: the old server remains: %v", name, web)
		}
	}
}

// edited returns the values of a file of settings after its edit.
func edited(t *testing.T, f rootfile.File, old string) map[string]any {
	t.Helper()
	data, err := f.Edit([]byte(old))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]any{}
	if strings.HasSuffix(f.Path, ".toml") {
		err = toml.Unmarshal(data, &got)
	} else {
		err = json.Unmarshal(data, &got)
	}
	if err != nil {
		t.Fatalf("%s: %v\n%s", f.Path, err, data)
	}
	return got
}

// contains reports values of want, in JSON, that got lacks.
func contains(t *testing.T, got map[string]any, want string) {
	t.Helper()
	var values map[string]any
	if err := json.Unmarshal([]byte(want), &values); err != nil {
		t.Fatal(err)
	}
	for key, value := range values {
		if inner, ok := value.(map[string]any); ok {
			below, _ := got[key].(map[string]any)
			text, err := json.Marshal(inner)
			if err != nil {
				t.Fatal(err)
			}
			contains(t, below, string(text))
			continue
		}
		if !reflect.DeepEqual(got[key], value) {
			t.Errorf("%q is %v, want %v", key, got[key], value)
		}
	}
}

// TestCodexFiles checks a kind with TOML, a file for its prompt, and a directory that a
// variable moves.
func TestCodexFiles(t *testing.T) {
	img := Image{Home: "/home/x", WorkDir: "/work space", UID: 1000}
	files := kindAgent("codex").RootFiles(img)
	edit := fileAt(t, files, "/home/x/.codex/config.toml").Edit
	for name, c := range map[string]struct{ old, want string }{
		"none":      {"", `{"check_for_update_on_startup":false,"projects":{"/work space":{"trust_level":"trusted"}}}`},
		"a comment": {"# mine\nmodel = \"m\"\n", `{"check_for_update_on_startup":false,"model":"m","projects":{"/work space":{"trust_level":"trusted"}}}`},
		"kept":      {"check_for_update_on_startup = true\n[projects.\"/work space\"]\ntrust_level = \"untrusted\"\n[projects.\"/x\"]\ntrust_level = \"trusted\"\n", `{"check_for_update_on_startup":true,"projects":{"/work space":{"trust_level":"untrusted"},"/x":{"trust_level":"trusted"}}}`},
	} {
		data, err := edit([]byte(c.old))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var got, want any
		if err := toml.Unmarshal(data, &got); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(c.want), &want); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %s", name, data)
		}
	}
	for _, bad := range []string{"projects = 1\n", "= 2\n"} {
		if data, err := edit([]byte(bad)); err == nil || hint.Of(err) == "" {
			t.Errorf("%q: %s, %v", bad, data, err)
		}
	}
	if link := fileAt(t, files, "/home/x/.codex/AGENTS.md"); link.Link != PromptFile || link.Mode&fs.ModeSymlink == 0 || link.Data != nil {
		t.Errorf("the prompt's file: %+v", link)
	}
	fileAt(t, files, "/home/x/.codex/skills/review/SKILL.md")
	a := kindAgent("codex")
	a.Variables = []Variable{{Name: "CODEX_HOME", Source: manifest.SourceLiteral, Literal: "/c"}}
	for _, path := range []string{"/c/config.toml", "/c/AGENTS.md", "/c/skills/review/SKILL.md"} {
		fileAt(t, a.RootFiles(img), path)
	}
	a.Prompt = ""
	if slices.ContainsFunc(a.RootFiles(img), func(f rootfile.File) bool { return f.Link != "" }) {
		t.Error("a link without a prompt")
	}
}

// TestUnattendedFilesAndVariables: a setting of a mode is made in that mode only.
func TestUnattendedFilesAndVariables(t *testing.T) {
	img := Image{Home: "/home/x", WorkDir: "/workspace", UID: 1000}
	for _, unattended := range []bool{false, true} {
		a := kindAgent("amp")
		a.Unattended = unattended
		data, err := fileAt(t, a.RootFiles(img), "/home/x/.config/amp/settings.json").Edit(nil)
		if err != nil || strings.Contains(string(data), `"amp.dangerouslyAllowAll": true`) != unattended || !strings.Contains(string(data), `"amp.updates.mode"`) {
			t.Errorf("unattended %v: %s, %v", unattended, data, err)
		}
		g := kindAgent("goose")
		g.Unattended = unattended
		want := map[bool]string{false: "GOOSE_MODE=approve", true: "GOOSE_MODE=auto"}[unattended]
		if env := g.Environ(img); !slices.Contains(env, want) {
			t.Errorf("unattended %v: no %s in %q", unattended, want, env)
		}
	}
}

// TestLoginVariables: variables that go with a login are set with it, unless the user
// sets them.
func TestLoginVariables(t *testing.T) {
	key := Variable{Name: "OPENAI_API_KEY", Source: manifest.SourceForwarded, Secret: secret.New("s3cret")}
	a := kindAgent("goose")
	if env := a.Environ(Image{}); slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "GOOSE_PROVIDER=") }) {
		t.Errorf("a provider without a key: %q", env)
	}
	a.Variables = []Variable{key}
	if env := a.Environ(Image{}); !slices.Contains(env, "GOOSE_PROVIDER=openai") {
		t.Errorf("no provider: %q", env)
	}
	a.Variables = append(a.Variables, Variable{Name: "GOOSE_PROVIDER", Source: manifest.SourceLiteral, Literal: "mine"})
	if env := a.Environ(Image{}); slices.Contains(env, "GOOSE_PROVIDER=openai") || !slices.Contains(env, "GOOSE_PROVIDER=mine") {
		t.Errorf("the user's provider is replaced: %q", env)
	}
}
