package main

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/plan"
)

const (
	keyTestHost   = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMXzLOKiMaFavzePnIti3zo3Ccxii84yQm7sMFRspFsd"
	keyTestDigest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
)

// planKeys says for each key of the manifest where a plan shows it: a YAML value, and
// what of it is then in the plan and not in the plan without the key. Keys of one row of
// the schema are set together with the required ones of need.
var planKeys = map[string]struct {
	value string
	need  string // other keys of the same mapping
	want  []string
	// none is the reason why the plan does not show a key.
	none string
}{
	"version": {none: "there is one format"},
	"bottles": {none: "its bottles are shown by their own keys"},
	"agents":  {none: "its agents are shown by their own keys"},

	"agents.bottle": {none: "required: every plan shows it, and the test compares with a plan without the key"},
	"agents.kind": {value: "codex", want: []string{
		"kind", "codex (OpenAI Codex)", "impl: codex\n", "hosts of codex", "bottle-codex:latest", "login", "WARNING", "OpenAI Codex gets no login", "api.openai.com",
	}},
	"agents.unattended": {value: "true", need: "kind: codex", want: []string{"unattended", "impl: codex --dangerously-bypass-approvals-and-sandbox"}},
	"agents.command":    {value: `[run, "a b"]`, want: []string{`impl: run "a b"`}},
	"agents.prompt":     {value: "do it", want: []string{"prompt", "5 bytes"}},
	"agents.skills":     {value: "[review]", want: []string{"review"}},
	"agents.mcp":        {none: "shown by its keys"},
	"agents.pool":       {value: "3", want: []string{"prepared", "no (only those with the built-in proxy are prepared); up to 3 are kept"}},

	"agents.pool.size": {value: "3", want: []string{"prepared", "up to 3 are kept"}},
	"agents.pool.warm": {value: "true", need: "size: 3", want: []string{"prepared", "up to 3 are kept for the agent, with it started"}},

	"agents.mcp.command": {value: `[node, "a b"]`, want: []string{"MCP servers", `NAME (node "a b")`}},
	"agents.mcp.env":     {value: "{LEVEL: val}", need: "command: [node]", want: []string{`NAME (node; LEVEL="val")`}},
	"agents.mcp.url":     {value: "https://api.test/mcp", want: []string{"NAME (https://api.test/mcp)"}},

	"bottles.image":  {value: "there:1", want: []string{"docker.io/library/there:1"}},
	"bottles.build":  {none: "shown by its keys"},
	"bottles.logins": {value: "[netrc]", want: []string{"logins", "netrc:api.test (from DIR/.netrc; placeholder, inserted for api.test:443)"}},
	"bottles.env":    {value: `{LIT: "debug\x1b"}`, want: []string{`LIT="debug\x1b"`}},
	"bottles.egress": {none: "shown by its keys"},
	"bottles.proxy":  {none: "shown by its keys"},
	"bottles.ssh":    {none: "shown by the keys of its entries"},
	"bottles.git":    {none: "shown by its keys"},
	"bottles.limits": {none: "shown by its keys"},

	"bottles.build.context":      {value: "other", want: []string{"Dockerfile in DIR/other", "RUN steps reach all public hosts"}},
	"bottles.build.dockerfile":   {value: "D", want: []string{"DIR/D in DIR"}},
	"bottles.build.target":       {value: "stage", need: "dockerfile: D", want: []string{"target stage"}},
	"bottles.build.args":         {value: "{ARG: val}", need: "dockerfile: D", want: []string{`ARG="val"`}},
	"bottles.build.network":      {value: "host", need: "dockerfile: D", want: []string{"RUN steps use the host's network", "WARNING", "the steps of the build reach the host's loopback interface"}},
	"bottles.build.egress":       {value: "{allow: [steps.test]}", need: "dockerfile: D", want: []string{"RUN steps reach steps.test"}},
	"bottles.build.egress.allow": {none: "shown with the mapping that contains it"},
	"bottles.build.secrets":      {value: `{one: secret, two: "env:TOKEN"}`, need: "dockerfile: D", want: []string{"one from DIR/secret, two from the variable TOKEN"}},

	"bottles.env.from":    {value: "TOKEN", want: []string{"VAR (forwarded from TOKEN)"}},
	"bottles.env.prompt":  {value: "Key?", want: []string{`VAR (the manifest asks: "Key?")`}},
	"bottles.env.command": {value: `[pass, show, "a b"]`, want: []string{`VAR (command: pass show "a b")`}},
	"bottles.env.ttl":     {value: "50m", need: `command: [pass], inject: [api.test]`, want: []string{"VAR (command: pass, run again within 50m; placeholder"}},
	"bottles.env.file":    {value: "secret", want: []string{"VAR (file from DIR/secret)"}},

	"bottles.env.inject": {value: "[api.test]", need: `from: TOKEN`, want: []string{"VAR (forwarded from TOKEN; placeholder, inserted for api.test:443)"}},
	"bottles.env.as":     {value: "[query]", need: `from: TOKEN, inject: [api.test]`, want: []string{"inserted for api.test:443 as query"}},

	"bottles.egress.allow":         {value: "[allowed.test]", want: []string{"allowed hosts", "allowed.test"}},
	"bottles.egress.allow.host":    {none: "required: shown with the other keys of its entry"},
	"bottles.egress.allow.methods": {value: "[GET, PUT]", need: "host: api.test, paths: [/a]", want: []string{"allowed requests", "api.test (GET PUT; /a)"}},
	"bottles.egress.allow.paths":   {value: `["/v1/**"]`, need: "host: api.test, methods: [GET]", want: []string{"api.test (GET; /v1/**)"}},
	"bottles.egress.allow.upgrade": {value: "true", need: "host: api.test, methods: [GET]", want: []string{"api.test (GET; upgrade)"}},
	"bottles.egress.allow.git":     {value: "read", need: "host: api.test, paths: [/a]", want: []string{"api.test (git read; /a)"}},
	"bottles.egress.allow.repos":   {value: "[me/x]", need: "host: api.test, git: read", want: []string{"api.test (git read; me/x)"}},
	"bottles.egress.allow.push":    {value: `["refs/heads/b/*"]`, need: "host: api.test, git: write", want: []string{"api.test (git write; push refs/heads/b/*)"}},
	"bottles.egress.deny":          {value: "[denied.test]", want: []string{"denied hosts", "denied.test"}},
	"bottles.egress.allow_private": {value: "[10.1.2.0/24]", want: []string{"private networks allowed", "10.1.2.0/24"}},

	"bottles.proxy.kind":    {value: "builtin", want: []string{"builtin\n"}},
	"bottles.proxy.image":   {value: "theirs/pipelock:2.3.0", want: []string{"theirs/pipelock:2.3.0@" + keyTestDigest, "WARNING", "not an official release of pipelock"}},
	"bottles.proxy.version": {value: "2.2.0", need: "image: theirs/pipelock:2.3.0", want: []string{"pipelock 2.2.0"}},
	"bottles.proxy.memory":  {value: "999MiB", want: []string{"memory 999 MiB"}},

	"bottles.ssh.Host":                 {none: "required: shown with the other keys of its entry"},
	"bottles.ssh.HostName":             {value: "real.test", want: []string{"work: real.test:22"}},
	"bottles.ssh.User":                 {value: "someone", want: []string{"user someone"}},
	"bottles.ssh.Port":                 {value: "2222", want: []string{"work:2222"}},
	"bottles.ssh.IdentityFile":         {value: "key", want: []string{"signs with DIR/key"}},
	"bottles.ssh.HostKey":              {value: keyTestHost, want: []string{"host key SHA256:", "from the manifest"}},
	"bottles.ssh.mode":                 {value: "copy", need: "IdentityFile: key", want: []string{"WARNING", "key DIR/key, copied into the bottle"}},
	"bottles.ssh.PubkeyAuthentication": {value: "unbound", want: []string{"WARNING", "unbound: whoever holds"}},

	"bottles.git.name":  {value: "A Person", need: "email: a@b.test", want: []string{"A Person <a@b.test>"}},
	"bottles.git.email": {value: "a@b.test", need: "name: A Person", want: []string{"A Person <a@b.test>"}},

	"bottles.limits.memory":    {value: "77MiB", want: []string{"memory 77 MiB"}},
	"bottles.limits.disk":      {value: "88MiB", want: []string{"disk 88 MiB"}},
	"bottles.limits.workspace": {value: "99MiB", want: []string{"workspace 99 MiB"}},
	"bottles.limits.cpus":      {value: "0.75", want: []string{"0.75 CPUs"}},
	"bottles.limits.pids":      {value: "321", want: []string{"321 processes"}},
}

// TestPlanShowsEveryKey: the manifest may be someone else's, so whatever it can say has
// a row in the plan that the user confirms, or a reason for having none.
func TestPlanShowsEveryKey(t *testing.T) {
	known := schemaKeys(t)
	for _, key := range known {
		if _, ok := planKeys[key]; !ok {
			t.Errorf("the key %s has neither a row in the plan nor a reason for having none", key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(planKeys)) {
		c := planKeys[key]
		if !slices.Contains(known, key) {
			t.Errorf("the manifest has no key %s", key)
		}
		if c.none != "" {
			continue
		}
		t.Run(key, func(t *testing.T) {
			path := strings.Split(key, ".")
			leaf := path[len(path)-1]
			with := planOf(t, path, joinKeys(leaf+": "+quoteYAML(c.value), c.need))
			without := planOf(t, path, c.need)
			for _, want := range c.want {
				if !strings.Contains(with, want) {
					t.Errorf("no %q in\n%s", want, with)
				}
			}
			if last := c.want[len(c.want)-1]; strings.Contains(without, last) {
				t.Errorf("%q is also in the plan without the key:\n%s", last, without)
			}
		})
	}
}

func joinKeys(keys ...string) string {
	return strings.Join(slices.DeleteFunc(keys, func(s string) bool { return s == "" }), ", ")
}

// quoteYAML quotes text that is not a flow collection.
func quoteYAML(s string) string {
	if s == "true" || strings.ContainsAny(s[:1], "[{0123456789") {
		return s
	}
	return fmt.Sprintf("%q", s)
}

// planOf prints the plan of a manifest with keys at a path, DIR for its directory.
func planOf(t *testing.T, path []string, keys string) string {
	t.Helper()
	bottle, agent := "", ""
	switch {
	case len(path) == 3 && path[1] == "mcp":
		if keys != "" {
			agent = "mcp: {NAME: {" + keys + "}}"
		}
		bottle = "egress: {allow: [api.test]}"
	case len(path) == 3 && path[1] == "pool":
		if keys != "" {
			agent = "pool: {" + keys + "}"
		}
	case path[0] == "agents":
		agent = keys
	case len(path) == 2:
		bottle = keys
		if path[1] == "logins" {
			bottle = joinKeys(keys, "egress: {allow: [api.test]}")
		}
	case path[1] == "ssh":
		bottle = "ssh: [{" + joinKeys("Host: work", keys) + "}]"
	case path[1] == "env" && keys != "":
		bottle = "env: {VAR: {" + keys + "}}"
		if strings.Contains(keys, "inject") {
			bottle += ", egress: {allow: [api.test]}, proxy: {kind: builtin}"
		}
	case path[1] == "build" && keys != "":
		bottle = "image: built:1, build: {" + keys + "}"
	case len(path) == 4 && path[1] == "egress":
		bottle = "egress: {allow: [{" + keys + "}]}, proxy: {kind: builtin}"
	case keys != "":
		bottle = path[1] + ": {" + keys + "}"
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	writeFiles(t, dir, map[string]string{
		"key":         privateKey(t),
		"bottle.yaml": "version: 1\nbottles: {dev: {" + bottle + "}}\nagents: {impl: {" + joinKeys("bottle: dev", agent) + "}}\n",
		"Dockerfile":  "FROM scratch\n", "D": "FROM scratch\n", "other/Dockerfile": "FROM scratch\n", "secret": "hunter2\n",
		".netrc":                         "machine api.test login me password hunter2-netrc\n",
		".claude/skills/review/SKILL.md": "text\n", ".ssh/known_hosts": "work,[work]:2222,real.test " + keyTestHost + "\n",
	})
	spec := plan.Spec{Agent: "impl", Caller: caller.Caller{
		WorkDir: dir, Home: dir, UID: os.Getuid(), GID: os.Getgid(),
		Getenv: func(name string) (string, bool) {
			if name != "TOKEN" {
				return "", false
			}
			return "hunter2", true
		},
	}}
	p, err := plan.Prepare(t.Context(), spec, keyTestHostOf{})
	if err != nil {
		t.Fatalf("%s: %v", bottle+agent, err)
	}
	a, stdout, stderr := newApp()
	if err := a.showPlan(p, &approval{}, false); err != nil {
		t.Fatal(err)
	}
	if err := a.showPlan(p, &approval{}, true); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(stderr.String()+stdout.String(), "hunter2") {
		t.Errorf("shows a secret:\n%s\n%s", stderr, stdout)
	}
	return strings.ReplaceAll(stderr.String(), dir, "DIR")
}

// privateKey returns an ssh key without a passphrase.
func privateKey(t *testing.T) string {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), "")
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(block))
}

func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// keyTestHostOf is a host that has every image but the one that is built.
type keyTestHostOf struct{ fakeHost }

func (keyTestHostOf) Image(ctx context.Context, ref string) (plan.ImageInfo, error) {
	if ref == "docker.io/library/built:1" {
		return plan.ImageInfo{}, plan.ErrImageMissing
	}
	return plan.ImageInfo{Ref: ref, Digest: keyTestDigest, Cmd: []string{"claude"}}, nil
}

// schemaKeys lists the keys of the manifest's schema by their paths, without the names
// of bottles, agents and variables and without indexes.
func schemaKeys(t *testing.T) []string {
	t.Helper()
	var root map[string]any
	if err := json.Unmarshal(manifest.Schema, &root); err != nil {
		t.Fatal(err)
	}
	keys := map[string]bool{}
	var walk func(prefix string, schema any)
	walk = func(prefix string, schema any) {
		s, ok := schema.(map[string]any)
		if !ok {
			return
		}
		if ref, ok := s["$ref"].(string); ok {
			walk(prefix, root["$defs"].(map[string]any)[strings.TrimPrefix(ref, "#/$defs/")])
		}
		if properties, ok := s["properties"].(map[string]any); ok && s["type"] == "object" {
			for name, property := range properties {
				key := strings.TrimPrefix(prefix+"."+name, ".")
				keys[key] = true
				walk(key, property)
			}
		}
		for _, inner := range []string{"additionalProperties", "items", "then"} {
			walk(prefix, s[inner])
		}
	}
	walk("", root)
	return slices.Sorted(maps.Keys(keys))
}
