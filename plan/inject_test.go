package plan

import (
	"slices"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/manifest"
)

func TestInject(t *testing.T) {
	s := newScene(t, `env: {A: {from: WORK, inject: [api.test, "x.test:8443"], as: [query]}, B: {from: WORK, inject: false}, C: {from: WORK}}, egress: {allow: [api.test, "x.test:8443"]}`, "")
	s.env["WORK"] = "hunter2-work"
	s.spec.Proxy = manifest.ProxyBuiltin
	s.spec.Env = []string{"A=hunter2-given"} // another value, for the same hosts
	p := s.good()
	v := variables(p)
	if a := v["A"]; !slices.Equal(a.Inject, []string{"api.test:443", "x.test:8443"}) || !slices.Equal(a.As, []string{"query"}) || a.InjectKind || a.Secret.Reveal() != "hunter2-given" {
		t.Errorf("A: %+v", a)
	}
	if len(v["B"].Inject)+len(v["C"].Inject) > 0 {
		t.Errorf("B and C: %+v, %+v", v["B"], v["C"])
	}
}

// TestInjectUnderPipelock: a process in front of pipelock inserts.
func TestInjectUnderPipelock(t *testing.T) {
	s := newPipelockScene(t, "env: {A: {from: WORK, inject: [api.test]}}, egress: {allow: [api.test]}")
	s.env["WORK"] = "hunter2-work"
	if a := variables(s.good())["A"]; !slices.Equal(a.Inject, []string{"api.test:443"}) {
		t.Errorf("A: %+v", a)
	}
}

func TestInjectNeedsAllow(t *testing.T) {
	for host, allowed := range map[string]bool{"api.test": false, "api.test:8443": true, "sub.w.test": true, "x.test": true, "x.test:80": false, "no.test": false} {
		s := newScene(t, `env: {A: {from: WORK, inject: ["`+host+`"]}}, egress: {allow: ["api.test:8443", "*.w.test", "x.test:443", no.test], deny: [no.test]}`, "")
		s.env["WORK"] = "hunter2-work"
		s.spec.Proxy = manifest.ProxyBuiltin
		if allowed {
			s.good()
			continue
		}
		s.bad("bottle.yaml:3:", "cannot inject A for "+host, ": not allowed by egress", "egress.allow")
	}
}

// TestInjectKind: the login of a known kind is injected, unless it may go elsewhere or the
// manifest says otherwise.
func TestInjectKind(t *testing.T) {
	for _, c := range []struct {
		name, bottle, agent, want string
		flags                     []string
	}{
		{name: "default", bottle: "env: {ANTHROPIC_API_KEY: }", agent: "kind: claude", want: "api.anthropic.com:443"},
		{name: "by its command", bottle: "env: {ANTHROPIC_API_KEY: }, egress: {allow: [api.anthropic.com]}", agent: "command: [claude]", want: "api.anthropic.com:443"},
		{name: "another program", bottle: "env: {ANTHROPIC_API_KEY: }, egress: {allow: [api.anthropic.com]}", agent: "command: [sh]"},
		{name: "off", bottle: "env: {ANTHROPIC_API_KEY: {inject: false, from: ANTHROPIC_API_KEY}}", agent: "kind: claude"},
		{name: "another address", bottle: "env: {ANTHROPIC_API_KEY: , ANTHROPIC_BASE_URL: x}", agent: "kind: claude"},
		{name: "another address on the command line", bottle: "env: {ANTHROPIC_API_KEY: }", agent: "kind: claude", flags: []string{"ANTHROPIC_BASE_URL=x"}},
		{name: "denied", bottle: "env: {ANTHROPIC_API_KEY: }, egress: {deny: [api.anthropic.com]}", agent: "kind: claude"},
		{name: "literal", bottle: "env: {ANTHROPIC_API_KEY: text}", agent: "kind: claude"},
		{name: "on the command line", agent: "kind: claude", flags: []string{"ANTHROPIC_API_KEY"}, want: "api.anthropic.com:443"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newScene(t, c.bottle, c.agent)
			s.env["ANTHROPIC_API_KEY"] = "hunter2"
			s.spec.Env = c.flags
			s.spec.Proxy = manifest.ProxyBuiltin
			v := variables(s.good())["ANTHROPIC_API_KEY"]
			if got := strings.Join(v.Inject, " "); got != c.want || v.InjectKind != (c.want != "") {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestHostRules: rules need the built-in proxy, restrict presets and hosts of the agent's
// kind, and reach the policy that the proxy gets.
func TestHostRules(t *testing.T) {
	const rule = `{host: api.w.test, methods: [GET]}`
	s := newScene(t, `egress: {allow: ["*.w.test", "@github", `+rule+`, {host: github.com, git: read}]}`, "")
	s.spec.Proxy = manifest.ProxyBuiltin
	p := s.good()
	if v := p.policy.Check("api.w.test", 443); !v.Narrowed {
		t.Errorf("api.w.test: %+v", v)
	}
	if v := p.policy.Check("github.com", 443); !v.Narrowed || slices.Contains(p.Egress.Allow, "github.com") {
		t.Errorf("github.com: %+v, allowed hosts %q", v, p.Egress.Allow)
	}
	if v := p.policy.Check("x.w.test", 443); !v.Allowed || v.Narrowed {
		t.Errorf("x.test: %+v", v)
	}
	s = newScene(t, `egress: {allow: [`+rule+`]}`, "")
	s.spec.Proxy = manifest.ProxyPipelock
	s.bad(`allow entry "api.w.test:443": not supported by pipelock: it does not read requests`, "--proxy builtin")

	s = newScene(t, `egress: {allow: [{host: api.openai.com, paths: ["/v1/**"]}]}`, "kind: codex")
	s.spec.Proxy = manifest.ProxyBuiltin
	if p := s.good(); !p.policy.Check("api.openai.com", 443).Narrowed || slices.Contains(p.KindHosts, "api.openai.com") {
		t.Errorf("a host of the kind: %q", p.KindHosts)
	}
}
