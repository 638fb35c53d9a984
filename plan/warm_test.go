package plan

import (
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/egress/inject"
	"github.com/bot-bottle/bottle/manifest"
)

const warmPool = "pool: {size: 1, warm: true}"

// TestWarmRefused: what the manifest alone decides is an error, with what to do.
func TestWarmRefused(t *testing.T) {
	for _, c := range []struct{ bottle, agent, want string }{
		{"env: {TOKEN: {from: TOKEN}}", "", "it gets the value of TOKEN"},
		{"env: {TOKEN: {from: TOKEN, inject: false}}", "", "it gets the value of TOKEN"},
		{"env: {TOKEN: {file: token}}", "", "it gets the value of TOKEN"},
		{"env: {TOKEN: {prompt: Token, inject: [a.test]}}, egress: {allow: [a.test]}", "", "the form of TOKEN is not known before a run"},
		{"env: {TOKEN: {command: [echo, x], inject: [a.test]}}, egress: {allow: [a.test]}", "", "the form of TOKEN is not known before a run"},
		{"ssh: [{Host: work}]", "", "it gets ssh keys"},
		{"egress: {allow: [a.test]}", `kind: claude, mcp: {docs: {url: "https://a.test/"}}`, "its MCP servers would start without a network"},
	} {
		agent := warmPool
		if c.agent != "" {
			agent += ", " + c.agent
		}
		s := newScene(t, c.bottle, agent)
		s.env["TOKEN"] = "x"
		s.write("work/token", "x", 0o600)
		_, err := Prepare(t.Context(), s.spec, s.host)
		if err == nil || !strings.Contains(err.Error(), `cannot start agent "impl" ahead of its runs: `+c.want) {
			t.Errorf("%s %s: %v", c.bottle, c.agent, err)
		}
		if s = newScene(t, c.bottle, strings.Replace(agent, warmPool, "pool: 1", 1)); true {
			s.env["TOKEN"] = "x"
			s.write("work/token", "x", 0o600)
			if _, err := Prepare(t.Context(), s.spec, s.host); err != nil && strings.Contains(err.Error(), "ahead of its runs") {
				t.Errorf("%s without warm: %v", c.bottle, err)
			}
		}
	}
}

// TestWarmRuns: a run uses an agent that was started ahead of it only on a terminal, and if it
// gets no value of the run's.
func TestWarmRuns(t *testing.T) {
	const prepared = "claude-bottle-impl-7"
	const token = "ghp_0123456789012345678901234567890123ab"
	s := newScene(t, "env: {LEVEL: debug, TOKEN: {from: TOKEN, inject: [a.test]}}, egress: {allow: [a.test]}", warmPool)
	s.env["TOKEN"], s.host.prepared, s.spec.Terminal = token, prepared, true
	want := func(what, reason string) {
		t.Helper()
		p := s.good()
		if (p.Name == prepared) != (reason == "") || p.Prepared.Reason != reason || p.UsesWarm() != (reason == "") || !p.Warm {
			t.Errorf("%s: %s, %+v", what, p.Name, p.Prepared)
		}
	}
	want("the same", "")
	s.spec.Terminal = false
	want("no terminal", reasonTerminal)
	s.spec.Terminal, s.spec.Env = true, []string{"MORE=secret"}
	want("a value", reasonValues)
	s.spec.Env, s.env["TOKEN"] = nil, "short"
	want("a value without a form", reasonValues)

	// Of a value, the process that starts the agent gets the form.
	s.env["TOKEN"], s.spec.NamesOnly, s.spec.Forms, s.spec.Terminal = token, true, true, false
	p := s.good()
	for _, v := range p.Env {
		value := v.Secret.Reveal()
		if v.Name == "TOKEN" && (value == token || inject.Form(value) != inject.Form(token)) || v.Source == manifest.SourceLiteral && value != "" {
			t.Errorf("%s is %q", v.Name, value)
		}
	}
	if !p.UsesWarm() {
		t.Error(p.WarmObstacle())
	}
	for name, form := range p.ForwardedForms() {
		if name != "TOKEN" || form == token || inject.Form(form) != inject.Form(token) {
			t.Errorf("%s: %q", name, form)
		}
	}
	delete(s.env, "TOKEN")
	if p := s.good(); p.UsesWarm() {
		t.Error("an agent is started without a placeholder")
	}
	s.spec.Forms = false
	s.env["TOKEN"] = token
	for _, v := range s.good().Env {
		if v.Secret.Reveal() != "" {
			t.Errorf("%s has a value where only names are needed", v.Name)
		}
	}
}
