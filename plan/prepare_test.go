package plan

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/provision"
)

func TestPrepareDefaults(t *testing.T) {
	s := newScene(t, "", "")
	s.host.warnings = []string{"the host is odd"}
	got := s.good()
	if got.Created.IsZero() {
		t.Error("missing time of creation")
	}
	got.Created, got.caller, got.command = s.good().Created, caller.Caller{}, nil
	got.entries, got.policy = egress.Entries{}, egress.Policy{} // tested by TestPreparePolicyAndLimits
	want := &Plan{
		Agent: "impl", Bottle: "dev", Manifest: s.path("work/bottle.yaml"), Name: "claude-bottle-impl",
		Image: defaultRef, kind: claude, User: "node", Runtime: "runsc", Command: []string{"claude"}, Env: []provision.Variable{},
		Egress: manifest.Egress{Allow: []string{}, Deny: []string{}, AllowPrivate: []string{}}, Proxy: Proxy{Kind: "builtin"},
		Network: Network{Internal: "10.77.0.0/30", Egress: "10.210.0.0/16", Bridge: "bottle0", Warnings: s.host.warnings},
		Limits:  manifest.Limits{Memory: 4 << 30, Pids: 4096, Disk: 20 << 30, Workspace: 10 << 30}, Skills: []string{}, SSH: []manifest.SSHHost{},
		Warnings: []string{"the host is odd"}, Created: got.Created,
	}
	text, err := os.ReadFile(want.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	want.manifestSum = fmt.Sprintf("%x", sha256.Sum256(text))
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

// TestPrepareRuntimes: the runtimes of agent and proxy are checked at the same time, and
// the agent's error precedes. Runc is checked once if the agent runs under it.
func TestPrepareRuntimes(t *testing.T) {
	s := newScene(t, "", "")
	asked := make(chan string, 2)
	other := map[string]chan struct{}{Runsc: make(chan struct{}), Runc: make(chan struct{})}
	s.host.runtime = func(name string) error {
		asked <- name
		close(other[name])
		for _, c := range other {
			<-c // until the other one is asked too
		}
		return fmt.Errorf("no %s", name)
	}
	s.bad("no runsc")
	if got := []string{<-asked, <-asked}; !slices.Contains(got, Runsc) || !slices.Contains(got, Runc) {
		t.Errorf("checked %q", got)
	}
	s.spec.Runtime = Runc
	s.host.runtime = func(name string) error { asked <- name; return nil }
	s.good()
	if len(asked) != 1 || <-asked != Runc {
		t.Error("runc was not checked once")
	}
}

func TestPrepareManifest(t *testing.T) {
	s := newScene(t, "", "")
	s.spec.Agent = "imp"
	s.bad(`unknown agent "imp"`, "bottle.yaml", `did you mean "impl"?`)
	s.spec.Agent = ""
	s.bad(`unknown agent ""`, "known agents: impl")
	s = sceneOf(t, "version: 1\n")
	s.bad(`unknown agent "impl"`, "add one under agents")
	s = sceneOf(t, "version: 1\nbottles: {dev: {image: 1}}\n")
	s.bad("bottle.yaml:2:24: invalid image: expected text")
	s.spec.ManifestPath = s.path("other.yaml")
	s.bad("other.yaml", "no such file", "--manifest")
	s.write("other.yaml", "version: 1\nbottles: {b: {}}\nagents: {impl: {bottle: b}}\n", 0o644)
	if plan := s.good(); plan.Bottle != "b" || plan.Manifest != s.spec.ManifestPath {
		t.Errorf("got %+v", plan)
	}
}

func TestPrepareName(t *testing.T) {
	s := newScene(t, "", "")
	s.host.taken = map[string]bool{"claude-bottle-impl": true, "claude-bottle-impl-2.proxy": true}
	if got := s.good(); got.Name != "claude-bottle-impl-3" || got.Pinned {
		t.Errorf("got %s, pinned %v", got.Name, got.Pinned)
	}
	for n := 3; n <= names.MaxSuffix; n++ {
		s.host.taken[fmt.Sprintf("claude-bottle-impl-%d", n)] = true
	}
	s.bad("no free bottle name for agent impl: all 99 are taken", "bottle cleanup")
	s.env["CLAUDE_BOTTLE_CONTAINER"] = "from-env"
	if got := s.good(); got.Name != "from-env" || !got.Pinned {
		t.Errorf("got %s, pinned %v", got.Name, got.Pinned)
	}
	s.spec.Name = "from-flag"
	if got := s.good(); got.Name != "from-flag" || !got.Pinned {
		t.Errorf("got %s, pinned %v", got.Name, got.Pinned)
	}
	s.host.taken["from-flag"] = true
	s.bad("bottle name from-flag is taken", "bottle rm -f from-flag", "--name")
	s.spec.Name = "a b"
	s.bad(`invalid bottle name "a b"`)
	s.spec.Name, s.host.takenErr = "", errors.New("containerd is gone")
	s.bad("containerd is gone")
}

func TestPrepareImage(t *testing.T) {
	for name, c := range map[string]struct {
		bottle, env, derived string
		cwd                  bool
		image, base          string
	}{
		"default":         {image: defaultRef},
		"manifest":        {bottle: "image: mine", image: "docker.io/library/mine:latest"},
		"env":             {bottle: "image: mine", env: "ghcr.io/a/b:2", image: "ghcr.io/a/b:2"},
		"cwd":             {cwd: true, image: "docker.io/library/claude-bottle:cwd-impl", base: defaultRef},
		"cwd of manifest": {bottle: "image: mine", cwd: true, image: "docker.io/library/claude-bottle:cwd-impl", base: "docker.io/library/mine:latest"},
		"derived":         {derived: "x:y", cwd: true, image: "docker.io/library/x:y", base: defaultRef},
		"derived, no cwd": {derived: "x:y", image: defaultRef},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, c.bottle, "command: [run]")
			base := c.base
			if base == "" {
				base = c.image
			}
			s.host.images = map[string]ImageInfo{base: {}}
			s.env["CLAUDE_BOTTLE_IMAGE"], s.env["CLAUDE_BOTTLE_DERIVED_IMAGE"], s.spec.CwdImage = c.env, c.derived, c.cwd
			if got := s.good(); got.Image != c.image || got.BaseRef != c.base {
				t.Errorf("got %s of %q, want %s of %q", got.Image, got.BaseRef, c.image, c.base)
			}
		})
	}
}

func TestPrepareImageErrors(t *testing.T) {
	s := newScene(t, "image: mine", "")
	s.spec.Pull = PullNever
	s.bad("missing image mine:latest", "bottle pull mine:latest")
	if _, err := s.prepare(); !errors.Is(err, ErrImageMissing) {
		t.Errorf("%v is not ErrImageMissing", err)
	}
	s.spec.CwdImage = true
	s.bad("missing image mine:latest", "bottle pull mine:latest")
	s.env["CLAUDE_BOTTLE_DERIVED_IMAGE"] = "Bad"
	s.bad(`derived image "Bad"`)
	s.env["CLAUDE_BOTTLE_IMAGE"] = "No Image"
	s.bad(`"No Image" from CLAUDE_BOTTLE_IMAGE`)
}

func TestPrepareCommand(t *testing.T) {
	image := ImageInfo{Entrypoint: []string{"entry", "-e"}, Cmd: []string{"cmd"}}
	for name, c := range map[string]struct {
		agent string
		image ImageInfo
		args  []string
		want  []string
	}{
		"manifest":      {"command: [run, it]", image, nil, []string{"run", "it"}},
		"manifest args": {"command: [run]", image, []string{"-p", "x y"}, []string{"run", "-p", "x y"}},
		"image":         {"", image, nil, []string{"entry", "-e", "cmd"}},
		"image args":    {"", image, []string{"a"}, []string{"entry", "-e", "cmd", "a"}},
		"entrypoint":    {"command: []", ImageInfo{Entrypoint: []string{"e"}}, nil, []string{"e"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, "", c.agent)
			s.host.images[defaultRef], s.spec.Args = c.image, c.args
			if got := s.good().Command; !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	s := newScene(t, "", "")
	s.host.images[defaultRef], s.spec.Args = ImageInfo{}, []string{"x"}
	s.bad(`missing command: neither agent "impl"`, "in the manifest")
}

func TestPrepareRuntimeAndProxy(t *testing.T) {
	s := newScene(t, "", "")
	s.spec.Runtime = "runc"
	if got := s.good(); got.Runtime != "runc" || len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], "without gVisor's isolation") {
		t.Errorf("got %s, warnings %q", got.Runtime, got.Warnings)
	}
	s.spec.Runtime = "kata"
	s.bad(`unknown runtime "kata"`, "--runtime runsc or runc")
	s.spec.Runtime, s.host.runtimeErr = "", &hint.Error{Err: errors.New("no runsc"), Hint: "install it"}
	s.bad("no runsc: install it")
	s.host.runtimeErr, s.host.network = nil, errors.New("no bridge plugin")
	s.bad("no bridge plugin")
	s.host.network, s.spec.Proxy, s.spec.Pull = nil, "", PullNever
	s.bad("pipelock", "--proxy builtin")
	s.spec.Proxy = "squid"
	s.bad(`unknown proxy "squid"`, "--proxy builtin")
}

func TestPreparePolicyAndLimits(t *testing.T) {
	s := newScene(t, `egress: {allow: [b.example, a.example, b.example], allow_private: [10.1.0.0/16]}, limits: {memory: 1GiB, cpus: 2, pids: 64, disk: 3GiB, workspace: 5GiB}`, "")
	got := s.good()
	if !slices.Equal(got.Egress.Allow, []string{"a.example", "b.example"}) || !slices.Equal(got.Egress.AllowPrivate, []string{"10.1.0.0/16"}) {
		t.Errorf("got %+v", got.Egress)
	}
	if policy, err := got.Entries().Policy(); err != nil || !reflect.DeepEqual(policy, got.policy) || !slices.Equal(got.Entries().Allow, got.Egress.Allow) {
		t.Errorf("entries %+v, policy %+v, %v", got.Entries(), got.policy, err)
	}
	if got.Limits != (manifest.Limits{Memory: 1 << 30, CPUs: 2, Pids: 64, Disk: 3 << 30, Workspace: 5 << 30}) {
		t.Errorf("got %+v", got.Limits)
	}
}

func TestPrepareSkillsAndPrompt(t *testing.T) {
	s := newScene(t, "git: {name: A}", `skills: [review, test], prompt: "é!"`)
	s.write("home/.claude/skills/review/SKILL.md", "", 0o644)
	s.write("home/.claude/skills/test", "", 0o644) // a file, not a directory
	s.bad(`missing skill 'test': no directory `+s.path("home/.claude/skills/test"), "create it there")
	if err := os.Remove(s.path("home/.claude/skills/test")); err != nil {
		t.Fatal(err)
	}
	s.write("home/.claude/skills/test/skill.md", "", 0o644)
	got := s.good()
	if !slices.Equal(got.Skills, []string{"review", "test"}) || got.Prompt != "é!" || got.PromptBytes != 3 || got.Git.Name != "A" {
		t.Errorf("got %+v", got)
	}
	if len(got.Warnings) != 0 {
		t.Errorf("warnings %q", got.Warnings)
	}
}

// All problems are reported together, always in the same order.
func TestPrepareReportsAllErrors(t *testing.T) {
	s := newScene(t, `image: mine, env: {TOKEN: , OTHER: {file: nowhere}}, ssh: [{Host: a, IdentityFile: ~/none, HostKey: `+testHostKey+`}]`, "skills: [x, y]")
	s.host.images, s.host.runtimeErr, s.host.network = nil, errors.New("no runsc"), errors.New("no cni")
	s.spec.Name, s.spec.Proxy = "a b", "squid"
	s.spec.Pull = PullNever
	want := []string{`"a b"`, "missing image", "no runsc", "no cni", "unknown proxy", "OTHER: missing file", "cannot forward TOKEN", `skill 'x'`, `skill 'y'`, "ssh key of a"}
	for range 20 {
		_, err := s.prepare()
		got := hint.Split(err)
		if len(got) != len(want) {
			t.Fatalf("got %d errors, want %d:\n%v", len(got), len(want), err)
		}
		for i := range want {
			if !strings.Contains(got[i].Error(), want[i]) {
				t.Fatalf("error %d: got %v, want %q", i, got[i], want[i])
			}
		}
		if hint.Of(got[5]) != "" || hint.Of(got[6]) == "" {
			t.Fatal("the hint is attached to the wrong error")
		}
	}
}

func TestPrepareCancelled(t *testing.T) {
	s := newScene(t, "", "")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Prepare(ctx, s.spec, s.host); !errors.Is(err, context.Canceled) || len(hint.Split(err)) != 1 {
		t.Errorf("got %v", err)
	}
}

func TestProblems(t *testing.T) {
	a, b, c := errors.New("a"), &hint.Error{Err: errors.New("b"), Hint: "fix b"}, errors.New("c")
	worded := fmt.Errorf("both: %w, %w", a, c)
	for want, err := range map[string]error{
		"":            nil,
		"a":           a,
		"a|b|c":       errors.Join(a, hint.Problems{b, c}),
		"b|a|c":       hint.Problems{errors.Join(b), errors.Join(a, c)},
		"both: a, c":  worded,
		"x: a\nc|b":   hint.Problems{fmt.Errorf("x: %w", errors.Join(a, c)), b},
		"both: a, c|": errors.Join(worded, errors.New("")),
	} {
		var texts []string
		for _, e := range hint.Split(err) {
			texts = append(texts, e.Error())
		}
		if got := strings.Join(texts, "|"); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if !errors.Is(hint.Problems{a, b}, b) || hint.Of(hint.Problems{a, b}) != "fix b" || hint.Of(a) != "" {
		t.Error("errors.Is does not find an error in Problems")
	}
}

func planJSON(t *testing.T, p *Plan) string {
	t.Helper()
	data, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestPlanJSONKeys checks the keys of the JSON form, which programs rely on.
func TestPlanJSONKeys(t *testing.T) {
	var got map[string]any
	if err := json.Unmarshal([]byte(planJSON(t, newScene(t, "", "").good())), &got); err != nil {
		t.Fatal(err)
	}
	want := []string{"agent", "bottle", "command", "egress", "env", "image", "limits", "manifest", "name", "network", "pinned",
		"prompt_bytes", "proxy", "runtime", "skills", "ssh", "user", "warnings"}
	if keys := slices.Sorted(maps.Keys(got)); !slices.Equal(keys, want) {
		t.Errorf("got %q", keys)
	}
	for key, v := range got {
		if v == nil {
			t.Errorf("%s is null", key)
		}
	}
}
