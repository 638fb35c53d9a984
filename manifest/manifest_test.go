package manifest

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/agents"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/secret"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// secrets matches the values that bad manifests contain in wrong places.
var secrets = regexp.MustCompile(`(?i)hunter|9182736|aHVudGVy`)

// message and fix match each error in a manifest and its hint.
var (
	message = regexp.MustCompile(`^[\w.-]+:[1-9]\d*:[1-9]\d*: [[:print:]\pL…]{10,250}$`)
	fix     = regexp.MustCompile(`^[[:print:]\pL…]{0,250}$`)
)

func TestBadManifests(t *testing.T) {
	const golden = "testdata/bad/messages.txt"
	files, err := filepath.Glob("testdata/bad/*.*")
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	for _, path := range files {
		if path == golden {
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(path)
		if _, err = Parse(name, data); err == nil {
			t.Errorf("%s: no error", name)
		}
		for _, e := range hint.Split(err) {
			checkMessage(t, e)
			fmt.Fprintln(&got, e)
			if h := hint.Of(e); h != "" {
				fmt.Fprintf(&got, "\thint: %s\n", h)
			}
		}
	}
	compareGolden(t, golden, got.Bytes())
}

func checkMessage(t *testing.T, err error) {
	t.Helper()
	line, h := err.Error(), hint.Of(err)
	if !message.MatchString(line) || !fix.MatchString(h) {
		t.Errorf("not one line with a position: %q, hint %q", line, h)
	}
	if secrets.MatchString(line + h) {
		t.Errorf("shows a value: %s, hint %s", line, h)
	}
}

func compareGolden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(got, want) {
		return
	}
	gotLines, wantLines := strings.Split(string(got), "\n"), strings.Split(string(want), "\n")
	for i := range max(len(gotLines), len(wantLines)) {
		g, w := at(gotLines, i), at(wantLines, i)
		if g != w {
			t.Fatalf("%s, line %d (rewrite with -update):\n got %s\nwant %s", path, i+1, g, w)
		}
	}
}

func at(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return "(end)"
}

func TestManifestTooLarge(t *testing.T) {
	data := []byte("version: 1\n#" + strings.Repeat("x", maxManifest))
	_, err := Parse("big.yaml", data)
	if err == nil || !strings.Contains(err.Error(), "larger than 1MiB") {
		t.Fatalf("got %v", err)
	}
	checkMessage(t, err)
	if _, err := Parse("big.yaml", data[:maxManifest]); err != nil {
		t.Errorf("at the limit: %v", err)
	}
}

// TestBillionLaughsIsBounded checks that a walk of a huge tree ends after maxNodes values.
func TestBillionLaughsIsBounded(t *testing.T) {
	data, err := os.ReadFile("testdata/bad/laughs.yaml")
	if err != nil {
		t.Fatal(err)
	}
	d := &decoder{file: "laughs.yaml"}
	root, ok := d.document(data)
	if !ok {
		t.Fatal(d.problems)
	}
	defer func() {
		if _, ok := recover().(tooLarge); !ok || d.visited != maxNodes+1 {
			t.Errorf("ended after %d values, want %d", d.visited, maxNodes+1)
		}
	}()
	d.manifest(root, &Manifest{Bottles: map[string]*Bottle{}, Agents: map[string]*Agent{}})
}

func loadGood(t *testing.T, name string) *Manifest {
	t.Helper()
	m, err := Load(filepath.Join("testdata/good", name), testCaller)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(m.Path); err != nil || m.Text.Reveal() != string(data) {
		t.Errorf("%s: text %q, %v", name, m.Text.Reveal(), err)
	}
	m.Path, m.Text = "", secret.Value{}
	for _, b := range m.Bottles {
		for i := range b.Env {
			if b.Env[i].At.line == 0 {
				t.Errorf("%s: %s has no position", name, b.Env[i].Name)
			}
			b.Env[i].At = position{}
		}
	}
	return m
}

func TestGoodManifest(t *testing.T) {
	literal := func(name, value string) Variable { return Variable{Name: name, Literal: &value} }
	want := &Manifest{
		Bottles: map[string]*Bottle{
			"bare": {},
			"mirrors": {Build: &Build{
				Args: map[string]string{"BASE": "debian:1"}, Secrets: map[string]string{"sources": "sources.list"},
			}},
			"dev": {
				Image: "registry.example/claude:1",
				Build: &Build{
					Context: ".", Dockerfile: "Dockerfile", Target: "final",
					Args: map[string]string{"VERSION": "1.20", "DEBUG": "true"}, Secrets: map[string]string{"npm": "NPM_TOKEN"},
				},
				Env: []Variable{
					literal("LOG_LEVEL", "debug"), literal("NUMBER", "0x10"), literal("YES", "yes"), literal("EMPTY", ""),
					literal("LINES", "a=b\n'c' \"d\" é 😀\n"),
					{Name: "GITHUB_TOKEN", From: "GITHUB_TOKEN"},
					{Name: "NPM_TOKEN", From: "WORK_NPM_TOKEN"},
					{Name: "API_KEY", Prompt: "API key"},
					{Name: "DEPLOY_KEY", File: "~/.deploy"},
					{Name: "PASSWORD", Command: []string{"pass", "show", "a b"}},
					{Name: "GH_TOKEN", From: "MINE", Inject: &Injection{
						Hosts: []string{"api.github.com:443", "git.example.com:8443"}, As: []string{"headers", "X-Token", "query", "body"},
					}},
					{Name: "OPENAI_API_KEY", From: "OPENAI_API_KEY", Inject: &Injection{Hosts: []string{"api.openai.com:443"}}},
					{Name: "ROTATING", Command: []string{"token", "--json"}, TTL: 50 * time.Minute, Inject: &Injection{Hosts: []string{"api.github.com:443"}}},
					{Name: "SESSION", File: "~/.session", Inject: &Injection{}},
				},
				Logins: []string{"gh", "npm"},
				Egress: Egress{
					Allow:        []string{"api.anthropic.com", "*.github.com", "git.example.com:8443", "192.0.2.7", "dev.example:3000-3010"},
					Deny:         []string{"gist.github.com", "*.no.github.com"},
					AllowPrivate: []string{"10.1.2.0/24", "intranet.example"},
				},
				Proxy: Proxy{Kind: ProxyPipelock, Image: "registry.example/pipelock:mine", Version: "2.3.0", Memory: 1 << 30},
				SSH: []SSHHost{
					{Host: "work", HostName: "git.example.com", User: "git", Port: 2222, IdentityFile: "~/.ssh/id_work", Mode: SSHCopy, PubkeyAuthentication: PubkeyHostBound},
					{Host: "git.example.com", HostName: "git.example.com", Port: 22, Mode: SSHAgent, PubkeyAuthentication: PubkeyUnbound, HostKey: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMXzLOKiMaFavzePnIti3zo3Ccxii84yQm7sMFRspFsd"},
				},
				Git:    &Git{Name: "A Person", Email: "a@example.com"},
				Limits: Limits{Memory: 4 << 30, CPUs: 1.5, Pids: 4096},
			},
		},
		Agents: map[string]*Agent{
			"impl": {
				Kind: "claude", Unattended: true, Pool: 2, Warm: true, Bottle: "dev", Command: []string{"claude", "--verbose", "7", ""},
				Prompt: "You are …\nTwice.\n", Skills: []string{"review", "write tests"},
				MCP: []agents.Server{
					{Name: "docs", Command: []string{"node", "server.js", "7"}, Env: map[string]string{"LEVEL": "3"}},
					{Name: "search", URL: "https://mcp.example.com:8443/mcp"},
				},
			},
			"Second One": {Bottle: "bare"},
		},
	}
	for _, name := range []string{"all.yaml", "all.json"} {
		if got := loadGood(t, name); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v\nwant %+v", name, got, want)
		}
	}
}

func TestGoodAliases(t *testing.T) {
	m := loadGood(t, "aliases.yaml")
	if !reflect.DeepEqual(m.Bottles["a"], m.Bottles["b"]) || *m.Bottles["b"].Env[1].Literal != "1" {
		t.Errorf("got %+v and %+v", m.Bottles["a"], m.Bottles["b"])
	}
	if got := m.Agents["other"].Command; !slices.Equal(got, []string{"sh", "1"}) {
		t.Errorf("got %q", got)
	}
	loadGood(t, "windows.yaml")
	loadGood(t, "flow.yaml")
}

// TestJSONPositions checks that JSON in a file without the extension is parsed as JSON, with
// the right positions.
func TestJSONPositions(t *testing.T) {
	_, err := Parse("m", []byte("{\n \"version\": 1, \"bottles\": {\"é\\ud83d\\ude00\":\n\t7}}"))
	if err == nil || !strings.HasPrefix(err.Error(), "m:3:2: invalid bottle \"é😀\"") {
		t.Errorf("got %v", err)
	}
	_, err = Parse("m.json", []byte("{\"version\": 1, \"é\\ufffd�\": 1}"))
	if err == nil || !strings.HasPrefix(err.Error(), "m.json:1:16: unknown key") {
		t.Errorf("got %v", err)
	}
}

func TestLoadMissing(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "none.yaml"), testCaller)
	if !errors.Is(err, os.ErrNotExist) || hint.Of(err) == "" {
		t.Errorf("got %v, hint %q", err, hint.Of(err))
	}
}

func TestFind(t *testing.T) {
	root := t.TempDir()
	home, work := filepath.Join(root, "home"), filepath.Join(root, "a", "b", "c")
	for _, dir := range []string{work, filepath.Join(home, ".config", "bottle"), filepath.Join(root, "a", "b", "bottle.yaml")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c := testCaller
	c.WorkDir, c.Home = work, home
	// Each is created in turn and takes precedence over the previous ones.
	for _, path := range []string{
		"home/.config/bottle/bottle.json", "home/.config/bottle/bottle.yaml",
		"a/bottle.json", "a/bottle.yml", "a/bottle.yaml", "a/b/bottle.json", "a/b/c/bottle.yml",
	} {
		path = filepath.Join(root, path)
		if got, err := Find(c); got == path {
			t.Fatalf("found before it exists: %s, %v", got, err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := Find(c); err != nil || got != path {
			t.Errorf("got %s, %v, want %s", got, err, path)
		}
	}
}

func TestFindNone(t *testing.T) {
	work := t.TempDir()
	c := testCaller
	c.WorkDir, c.Home = work, "/nonexistent"
	_, err := Find(c)
	if err == nil || !strings.Contains(err.Error(), work) || !strings.Contains(err.Error(), "/nonexistent/.config/bottle") || hint.Of(err) == "" {
		t.Errorf("got %v, hint %q", err, hint.Of(err))
	}
}

func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/bad/*.*", "testdata/good/*"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, path := range files {
			data, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data, strings.HasSuffix(path, ".json"))
		}
	}
	position := regexp.MustCompile(`^(m|m\.json):[1-9]\d*:[1-9]\d*: .`)
	f.Fuzz(func(t *testing.T, data []byte, json bool) {
		name := "m"
		if json {
			name = "m.json"
		}
		m, err := Parse(name, data)
		if (m == nil) == (err == nil) {
			t.Fatalf("manifest %v and error %v", m, err)
		}
		for _, e := range hint.Split(err) {
			if line := e.Error(); !position.MatchString(line) || strings.ContainsAny(line, "\n\r\x00\x1b") {
				t.Errorf("not one line with a position: %q", line)
			}
		}
	})
}
