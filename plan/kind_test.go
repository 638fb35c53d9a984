package plan

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/agents"
	"github.com/bot-bottle/bottle/images/agent"
	"github.com/bot-bottle/bottle/manifest"
)

// TestPrepareKind: a kind sets command, image and hosts, and its files are provisioned.
func TestPrepareKind(t *testing.T) {
	s := newScene(t, "egress: {allow: [mine.test], deny: [chatgpt.com]}, env: {OPENAI_API_KEY: }", "kind: codex, unattended: true")
	s.env["OPENAI_API_KEY"] = "hunter2"
	s.spec.Args = []string{"exec", "x"}
	plan := s.good()
	if want := "codex --dangerously-bypass-approvals-and-sandbox exec x"; strings.Join(plan.Command, " ") != want {
		t.Errorf("command %q, want %s", plan.Command, want)
	}
	b := plan.Build
	if b == nil || b.Kind != "codex" || b.Image != "docker.io/library/bottle-codex:latest" || b.Labels()[agent.Label] != agent.Hash(agents.Get("codex"), nil) {
		t.Errorf("build %+v", b)
	}
	if plan.Login != "OPENAI_API_KEY" || slices.ContainsFunc(plan.Warnings, func(w string) bool { return strings.Contains(w, "no login") }) {
		t.Errorf("login %q, warnings %q", plan.Login, plan.Warnings)
	}
	for _, host := range []string{"api.openai.com", "chatgpt.com"} {
		if !slices.Contains(plan.KindHosts, host) || !slices.Contains(plan.Egress.Allow, host) {
			t.Errorf("%s is not allowed: %q", host, plan.Egress.Allow)
		}
	}
	policy, err := plan.Entries().Policy()
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]bool{"api.openai.com": true, "mine.test": true, "chatgpt.com": false, "api.anthropic.com": false} {
		if got := policy.Check(host, 443).Allowed; got != want {
			t.Errorf("%s: allowed %v, want %v", host, got, want)
		}
	}
	if a := plan.Provisions(); a.Kind.Name != "codex" || !a.Unattended {
		t.Errorf("provisions for %s, unattended %v", a.Kind.Name, a.Unattended)
	}
}

// TestPrepareKindHosts: an agent of several providers reaches those whose key is named
// anywhere.
func TestPrepareKindHosts(t *testing.T) {
	for name, c := range map[string]struct {
		bottle string
		env    []string
		want   string
	}{
		"none":         {"", nil, "models.opencode.ai opencode.ai"},
		"manifest":     {"env: {OPENAI_API_KEY: {prompt: key}}", nil, "api.openai.com models.opencode.ai"},
		"command line": {"", []string{"ANTHROPIC_API_KEY=x"}, "api.anthropic.com models.opencode.ai"},
	} {
		s := newScene(t, c.bottle, "kind: opencode")
		s.spec.Env = c.env
		if got := strings.Join(s.good().KindHosts, " "); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// TestPrepareKindBounded: an administrator's policy applies to the hosts of a kind.
func TestPrepareKindBounded(t *testing.T) {
	s := newScene(t, "image: mine:1", "kind: claude")
	s.host.images["docker.io/library/mine:1"] = ImageInfo{Cmd: []string{"x"}}
	s.bounded("version: 1\negress: {never: [api.anthropic.com]}\n")
	s.bad("host api.anthropic.com is refused by egress.never")
}

// TestPrepareKindWithoutImage: a kind that bottle cannot install needs an image.
func TestPrepareKindWithoutImage(t *testing.T) {
	newScene(t, "", "kind: goose").bad(`missing image of bottle "dev"`, "bottle cannot build one with goose", "set image")
	s := newScene(t, "image: mine:1", "kind: goose")
	if plan := s.good(); plan.Pull != "docker.io/library/mine:1" || !slices.Equal(plan.Command, []string{"goose"}) {
		t.Errorf("pulls %q for %q", plan.Pull, plan.Command)
	}
}

// TestPrepareLoginWarning: the plan warns of an agent without a login only if it is known
// that it needs one.
func TestPrepareLoginWarning(t *testing.T) {
	for name, c := range map[string]struct {
		agent string
		env   []string // of the image
		flags []string
		want  bool
	}{
		"kind":            {"kind: claude", nil, nil, true},
		"command":         {"command: [claude]", nil, nil, true},
		"other command":   {"command: [sh]", nil, nil, false},
		"image's command": {"", nil, nil, false},
		"in the image":    {"kind: claude", []string{"ANTHROPIC_API_KEY=x"}, nil, false},
		"given":           {"kind: claude", nil, []string{"ANTHROPIC_API_KEY=x"}, false},
		"another's":       {"kind: claude", nil, []string{"OPENAI_API_KEY=x"}, true},
	} {
		s := newScene(t, "", c.agent)
		s.host.images[defaultRef] = ImageInfo{Cmd: []string{"claude"}, Env: c.env}
		s.spec.Env = c.flags
		warned := slices.ContainsFunc(s.good().Warnings, func(w string) bool { return strings.Contains(w, "Claude Code gets no login") })
		if warned != c.want {
			t.Errorf("%s: warned %v", name, warned)
		}
	}
}

// TestPrepareKindForwardsNoToken: Claude Code's token is not given to another kind unasked.
func TestPrepareKindForwardsNoToken(t *testing.T) {
	s := newScene(t, "", "kind: codex")
	s.env[callerToken] = "hunter2"
	if plan := s.good(); len(plan.Env) != 0 {
		t.Errorf("variables %+v", plan.Env)
	}
	s = newScene(t, "", "kind: claude")
	s.env[callerToken] = "hunter2"
	if plan := s.good(); len(plan.Env) != 1 || plan.Login != agentToken || plan.Env[0].Source != manifest.SourceForwarded {
		t.Errorf("variables %+v, login %q", plan.Env, plan.Login)
	}
}

// TestPrepareLoginUnderSudo: the warning says why the variable is missing.
func TestPrepareLoginUnderSudo(t *testing.T) {
	for kind, want := range map[string]string{"claude": callerToken, "gemini": "GEMINI_API_KEY"} {
		s := newScene(t, "image: mine:1", "kind: "+kind)
		s.env["SUDO_UID"] = "1000"
		warnings := strings.Join(s.good().Warnings, "\n")
		if !strings.Contains(warnings, "bottle login "+kind) || !strings.Contains(warnings, "sudo --preserve-env="+want) {
			t.Errorf("%s: %q", kind, warnings)
		}
	}
}

// TestPrepareStoredLogin: the stored login is used by agents of its kind that get no
// other, also for their hosts; a broken one is an error only then.
func TestPrepareStoredLogin(t *testing.T) {
	store := func(s *scene, kind, text string) {
		s.write("home/.config/bottle/logins/"+kind, text, 0o600)
	}
	for name, c := range map[string]struct {
		agent string
		flags []string
		want  string // source
	}{
		"kind":            {"kind: opencode", nil, "login"},
		"command":         {"command: [opencode]", nil, "login"},
		"other command":   {"command: [sh]", nil, ""},
		"given":           {"kind: opencode", []string{"OPENAI_API_KEY=hunter2"}, "command line"},
		"another's given": {"kind: opencode", []string{"GEMINI_API_KEY=hunter2"}, "command line login"},
	} {
		s := newScene(t, "image: mine:1", c.agent)
		store(s, "opencode", "ANTHROPIC_API_KEY=hunter2\n")
		s.spec.Env = c.flags
		plan := s.good()
		var got []string
		for _, v := range plan.Env {
			got = append(got, v.Source)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: sources %q, want %s", name, got, c.want)
		}
		if plan.Kind != "" && c.want == "login" && !slices.Contains(plan.KindHosts, "api.anthropic.com") {
			t.Errorf("%s: hosts %q", name, plan.KindHosts)
		}
	}
	s := newScene(t, "image: mine:1", "kind: claude")
	store(s, "claude", "hunter2\n")
	s.bad("invalid stored login", "bottle login claude")
	s.spec.Env = []string{"ANTHROPIC_API_KEY=hunter2"}
	s.good()
}

// TestRunCommands: commands run only when they are asked to, and a plan shows neither
// their values nor launches without them.
func TestRunCommands(t *testing.T) {
	s := newScene(t, `env: {A: {command: [echo, hunter2]}, B: {command: [sh, -c, "printf '%s' \"$HOME\""]}, C: {command: [echo, over]}}`, "command: [sh]")
	s.spec.Env = []string{"C=given"}
	plan := s.good()
	if !plan.Commands() || len(plan.Env) != 3 {
		t.Fatalf("variables %+v", plan.Env)
	}
	if err := plan.RunCommands(t.Context(), io.Discard); err != nil || plan.Commands() {
		t.Fatalf("%v, pending %v", err, plan.Commands())
	}
	got := map[string]string{}
	for _, v := range plan.Env {
		got[v.Name] = v.Secret.Reveal()
	}
	if want := (map[string]string{"A": "hunter2", "B": s.spec.Caller.Home, "C": "given"}); !maps.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if out := renewed(t, "printf", "50m", "token"); out.value != "token" || out.in != 40*time.Minute {
		t.Errorf("%+v", out)
	}
	if out := renewed(t, "echo", "50m", `{"token": "of json"}`); out.value != "of json" || out.in != 40*time.Minute {
		t.Errorf("%+v", out)
	}
	expiry := time.Now().Add(10 * time.Hour).UTC().Format(time.RFC3339)
	if out := renewed(t, "echo", "50m", `{"token": "of json", "expires_at": "`+expiry+`", "more": 1}`); out.value != "of json" || out.in != 8*time.Hour {
		t.Errorf("%+v", out)
	}
	for text, want := range map[string]string{
		`{"token": "hunter2", "expires_at": "2020-01-02T15:04:05Z"}`: "A: echo printed a value that has expired",
		`{"token": "hunter2", "expires_at": "soon"}`:                 "A: echo printed invalid JSON",
		`{"token": "hunter2"`:                                        "A: echo printed invalid JSON",
		`{"secret": "hunter2"}`:                                      "A: echo printed no token",
	} {
		if out := renewed(t, "echo", "1h", text); out.err == nil || !strings.Contains(out.err.Error(), want) || strings.Contains(out.err.Error(), "hunter2") {
			t.Errorf("%s: %+v", text, out)
		}
	}
	s = newScene(t, `env: {A: {command: ["true"]}, B: {command: ["false"]}, D: {command: [no-such-program]}}`, "command: [sh]")
	err := s.good().RunCommands(t.Context(), io.Discard)
	for _, want := range []string{"A: true printed nothing", "B: false: exit status 1", `D: unknown program "no-such-program"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
}

// renewal is the value of a command with a ttl, and when it is to be renewed.
type renewal struct {
	value string
	in    time.Duration // rounded to minutes
	err   error
}

func renewed(t *testing.T, program, ttl, text string) renewal {
	t.Helper()
	s := newScene(t, fmt.Sprintf("env: {A: {command: [%s, %q], ttl: %s, inject: [api.test]}}, egress: {allow: [api.test]}", program, text, ttl), "command: [sh]")
	s.spec.Proxy = manifest.ProxyBuiltin
	p := s.good()
	out := renewal{err: p.RunCommands(t.Context(), io.Discard)}
	v := p.Renewable()
	if len(v) != 1 {
		t.Fatalf("renewable: %+v", v)
	}
	out.value, out.in = v[0].Secret.Reveal(), time.Until(p.RenewAt(v[0])).Round(time.Minute)
	return out
}
