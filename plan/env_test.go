package plan

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/internal/secret/secrettest"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/provision"
)

// variables returns the variables of a plan with their values.
func variables(p *Plan) map[string]provision.Variable {
	out := map[string]provision.Variable{}
	for _, v := range p.Env {
		out[v.Name] = v
	}
	return out
}

func checkVariable(t *testing.T, p *Plan, name, source, from, value string) {
	t.Helper()
	v, ok := variables(p)[name]
	got := v.Secret.Reveal()
	if v.Source == manifest.SourceLiteral {
		got = v.Literal
	}
	if !ok || v.Source != source || v.From != from || got != value {
		t.Errorf("%s: present %v, source %q from %q, value %q, want %q from %q, %q", name, ok, v.Source, v.From, got, source, from, value)
	}
}

func TestEnvSources(t *testing.T) {
	const odd = "hunter2 a=b\n'c' \"d\" é 😀\n"
	s := newScene(t, `env: {LIT: "shown=x", FWD: , OTHER: {from: WORK}, ASK: {prompt: "Key?"}, FILE: {file: ~/.key}, REL: {file: sub/key}}`, "")
	s.env["FWD"], s.env["WORK"], s.env["ARG"], s.env["EMPTY"] = odd, "hunter2-work", "hunter2-arg", ""
	s.write("home/.key", odd+"\n", 0o400)
	s.write("work/sub/key", "", 0o600)
	s.spec.Env = []string{"ARG", "GIVEN=hunter2=given\n", "NONE=", "EMPTY"}
	p := s.good()
	checkVariable(t, p, "LIT", manifest.SourceLiteral, "", "shown=x")
	checkVariable(t, p, "FWD", manifest.SourceForwarded, "FWD", odd)
	checkVariable(t, p, "OTHER", manifest.SourceForwarded, "WORK", "hunter2-work")
	checkVariable(t, p, "ASK", manifest.SourcePrompt, "", "")
	checkVariable(t, p, "FILE", manifest.SourceFile, s.path("home/.key"), odd)
	checkVariable(t, p, "REL", manifest.SourceFile, s.path("work/sub/key"), "")
	checkVariable(t, p, "ARG", manifest.SourceForwarded, "ARG", "hunter2-arg")
	checkVariable(t, p, "GIVEN", provision.SourceArgument, "", "hunter2=given\n")
	checkVariable(t, p, "NONE", provision.SourceArgument, "", "")
	checkVariable(t, p, "EMPTY", manifest.SourceForwarded, "EMPTY", "")
	if len(p.Env) != 10 || variables(p)["ASK"].Ask != "Key?" {
		t.Errorf("got %v", p.Env)
	}
	if text := planJSON(t, p); secrets.MatchString(text) || !strings.Contains(text, `"WORK"`) || !strings.Contains(text, `"literal":"shown=x"`) {
		t.Errorf("the plan's JSON: %s", text)
	}
}

// TestEnvOverride checks that a later variable overrides an earlier one, whose source
// may then be missing.
func TestEnvOverride(t *testing.T) {
	s := newScene(t, "env: {A: lit, B: , C: {prompt: q}, D: {file: none}, E: {from: UNSET}}", "")
	s.spec.NoInput = true
	s.env["C"] = "c"
	s.spec.Env = []string{"A=1", "B=2", "C", "D=4", "E=never", "E=5"}
	p := s.good()
	for i, name := range []string{"A", "B", "C", "D", "E"} {
		if p.Env[i].Name != name {
			t.Errorf("variable %d is %s", i, p.Env[i].Name)
		}
	}
	checkVariable(t, p, "A", provision.SourceArgument, "", "1")
	checkVariable(t, p, "C", manifest.SourceForwarded, "C", "c")
	checkVariable(t, p, "E", provision.SourceArgument, "", "5")
}

func TestEnvUnset(t *testing.T) {
	s := newScene(t, "env: {A: , B: {from: WORK}, C: {from: WORK}}", "")
	s.spec.Env = []string{"D"}
	s.bad("cannot forward A, WORK, D: not set in the environment: set and export them")
	s.env["SUDO_UID"] = "1000"
	s.bad("sudo --preserve-env=A,WORK,D ")
	delete(s.env, "SUDO_UID")
	s.env["A"], s.env["WORK"] = "", ""
	s.bad("cannot forward D: not set in the environment: set and export it")
}

func TestEnvNoInput(t *testing.T) {
	s := newScene(t, "env: {KEY: {prompt: q}}", "")
	s.spec.NoInput = true
	s.bad("bottle.yaml:3:15: cannot ask for KEY with --no-input", "-e KEY")
}

func TestEnvFlagErrors(t *testing.T) {
	for flag, want := range map[string]string{
		"1A=hunter2": `invalid variable name "1A"`, "=hunter2": `invalid variable name ""`, "": `invalid variable name ""`, "A B": `invalid variable name "A B"`,
		"https_proxy=hunter2": "https_proxy is reserved for the address of the egress proxy", "NO_PROXY": "NO_PROXY is reserved for the address of the egress proxy", "A\n=hunter2": `invalid variable name "A\n"`,
	} {
		s := newScene(t, "", "")
		s.spec.Env = []string{flag}
		s.bad("-e: ", want)
	}
}

func TestEnvToken(t *testing.T) {
	s := newScene(t, "", "")
	s.env[callerToken] = "hunter2"
	checkVariable(t, s.good(), agentToken, manifest.SourceForwarded, callerToken, "hunter2")
	s.spec.Env = []string{agentToken + "=mine"}
	checkVariable(t, s.good(), agentToken, provision.SourceArgument, "", "mine")
	s = newScene(t, "", "")
	s.env[agentToken] = "the caller's own, not for the agent"
	if p := s.good(); len(p.Env) != 0 {
		t.Errorf("got %v", p.Env)
	}
	s.env[callerToken] = "" // as CI systems set a missing secret
	if p := s.good(); len(p.Env) != 0 {
		t.Errorf("empty token: got %v", p.Env)
	}
}

// TestEnvTokenNamed checks that a manifest or a flag that names the agent's variable
// accepts the caller's token under either name.
func TestEnvTokenNamed(t *testing.T) {
	s := newScene(t, "env: {"+agentToken+": }", "")
	s.bad("cannot forward " + agentToken + ": not set in the environment")
	s.env[callerToken] = "hunter2"
	checkVariable(t, s.good(), agentToken, manifest.SourceForwarded, callerToken, "hunter2")
	s.env[agentToken] = "by its own name"
	checkVariable(t, s.good(), agentToken, manifest.SourceForwarded, agentToken, "by its own name")
	no := false
	s.spec.ForwardToken = &no
	delete(s.env, agentToken)
	s.bad("cannot forward " + agentToken + ": not set in the environment")
}

func TestEnvTooLong(t *testing.T) {
	s := newScene(t, "", "")
	fits := strings.Repeat("x", MaxVariable-len("A=")-1)
	s.spec.Env = []string{"A=" + fits}
	s.good()
	s.spec.Env = []string{"A=" + fits + "x"}
	s.bad("value of A too long", fmt.Sprint(MaxVariable+1))
}

func TestEnvFileErrors(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		mode os.FileMode
		want []string
	}{
		"group":  {"hunter2", 0o640, []string{"is readable by others (mode 0640)", "chmod 600"}},
		"others": {"hunter2", 0o604, []string{"mode 0604", "chmod 600"}},
		"nul":    {"hunter2\x00", 0o600, []string{"NUL"}},
		"large":  {strings.Repeat("hunter2", MaxVariable/7+1), 0o600, []string{"larger than 131072 bytes"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, "env: {KEY: {file: ~/.key}}", "")
			s.write("home/.key", c.text, c.mode)
			s.bad(append(c.want, "bottle.yaml:3:15: KEY: ", s.path("home/.key"))...)
		})
	}
	s := newScene(t, "env: {KEY: {file: ~}}", "")
	s.bad("invalid file: expected text") // ~ alone is YAML's null
	s = newScene(t, `env: {KEY: {file: "~"}}`, "")
	s.bad(s.spec.Caller.Home + " is not a regular file")
	s = newScene(t, "env: {KEY: {file: ~/.key}}", "")
	s.bad("KEY: missing file " + s.path("home/.key"))
	if err := syscall.Mkfifo(s.path("home/.key"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.bad("is not a regular file") // a FIFO; Prepare must not wait for its writer
	if err := os.Remove(s.path("home/.key")); err != nil {
		t.Fatal(err)
	}
	s.write("home/.key", "hunter2", 0o600)
	s.spec.Caller.UID += 4242
	s.bad("cannot read "+s.path("home/.key")+": permission denied", "belongs to you")
	s.spec.Caller.UID = 0 // root may read all files
	checkVariable(t, s.good(), "KEY", manifest.SourceFile, s.path("home/.key"), "hunter2")
}

// TestEnvFileLineBreak checks that exactly one line break at the end is removed, which
// editors add.
func TestEnvFileLineBreak(t *testing.T) {
	for text, want := range map[string]string{"a\n": "a", "a\r\n": "a", "a\n\n": "a\n", "a": "a", "a\r": "a\r", "\n": "", "\na \n": "\na "} {
		s := newScene(t, "env: {KEY: {file: ~/.key}}", "")
		s.write("home/.key", text, 0o600)
		checkVariable(t, s.good(), "KEY", manifest.SourceFile, s.path("home/.key"), want)
	}
}

func TestCallerPath(t *testing.T) {
	c := caller.Caller{Home: "/home/me"}
	for written, want := range map[string]string{
		"~": "/home/me", "~/a/../b": "/home/me/b", "/a//b": "/a/b", "a": "/dir/a", "../a": "/a", "~other/a": "/dir/~other/a",
	} {
		if got := c.Path(written, "/dir"); got != want {
			t.Errorf("path(%q) = %q, want %q", written, got, want)
		}
	}
}

// TestPlanHidesSecrets formats a plan with a secret value in all possible ways.
func TestPlanHidesSecrets(t *testing.T) {
	const value = "hunter2-secret"
	plan := &Plan{Name: "n", Env: []provision.Variable{{Name: "TOKEN", Source: manifest.SourceForwarded, Secret: secret.New(value)}}}
	for name, v := range map[string]any{
		"plan": *plan, "pointer": plan, "variable": plan.Env[0], "resolver": envResolver{vars: plan.Env},
	} {
		secrettest.CheckHidden(t, name, v, value)
	}
}

// With NamesOnly neither values nor their sources are needed, and no value is read.
func TestNamesOnly(t *testing.T) {
	s := newScene(t, `env: {A: {from: UNSET}, B: {from: SET}, C: {file: none}, D: {prompt: "Which?"}, E: {command: [none]}, F: text},
    build: {secrets: {npm: "env:UNSET", key: none}}`, "")
	s.env["SET"] = "hunter2"
	s.spec.NamesOnly, s.host.images = true, nil
	p := s.good()
	for i, want := range []string{"A forwarded UNSET", "B forwarded SET", "C file " + s.path("work/none"), "D prompt ", "E command ", "F literal "} {
		v := p.Env[i]
		if got := v.Name + " " + v.Source + " " + v.From; got != want || v.Secret.Reveal() != "" {
			t.Errorf("got %q with the value %q, want %q", got, v.Secret.Reveal(), want)
		}
	}
	for _, b := range p.Build.Secrets {
		if b.Value.Reveal() != "" {
			t.Errorf("the value of %s was read", b.ID)
		}
	}
	s.spec.NamesOnly = false
	if _, err := s.prepare(); err == nil {
		t.Error("control: the values are there")
	}
}
