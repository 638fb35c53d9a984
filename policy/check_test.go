package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/manifest"
)

const (
	digestA = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	digestB = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

func allow(hosts ...string) egress.Entries { return egress.Entries{Allow: hosts} }

func limits(l manifest.Limits) func(*Rules) error {
	return func(r *Rules) error {
		_, _, err := r.Limits(l, l.OrDefault())
		return err
	}
}

// request is one request in a table, with what the error says if it is refused.
type request struct {
	ask     func(*Rules) error
	refused string // the error's beginning; empty: allowed
	hint    string
}

// keys has for each key of the schema a value, and requests that the value allows and
// refuses.
var keys = map[string]struct {
	value    string
	requests []request
}{
	"runtimes": {"[runsc]", []request{
		{ask: func(r *Rules) error { return r.Runtime("runsc") }},
		{func(r *Rules) error { return r.Runtime("runc") }, "runtime runc is refused by runtimes", "use --runtime runsc, or ask root to change runtimes in /p"},
	}},
	"proxies.kinds": {"[builtin]", []request{
		{ask: func(r *Rules) error { return r.Proxy("builtin", "", "") }},
		{func(r *Rules) error { return r.Proxy("pipelock", "x/y@"+digestA, digestA) }, "proxy pipelock is refused by proxies.kinds", "use --proxy builtin, or"},
	}},
	"proxies.images": {`["x.test/pipelock:2.3.0@` + digestA + `"]`, []request{
		{ask: func(r *Rules) error { return r.Proxy("builtin", "", "") }},
		{ask: func(r *Rules) error { return r.Proxy("pipelock", "x.test/pipelock@"+digestA, digestA) }},
		{ask: func(r *Rules) error { return r.Proxy("pipelock", "x.test/pipelock:2.3.0", digestA) }},
		{func(r *Rules) error { return r.Proxy("pipelock", "x.test/pipelock:2.3.0", digestB) }, "proxy image x.test/pipelock:2.3.0 with the digest " + digestB + " is refused by proxies.images", "use --proxy builtin"},
		{func(r *Rules) error { return r.Proxy("pipelock", "y.test/pipelock:2.3.0", digestA) }, "proxy image y.test/pipelock:2.3.0", "use --proxy builtin"},
		{func(r *Rules) error { return r.Proxy("pipelock", "x.test/pipelock:2.3.0", "") }, "proxy image x.test/pipelock:2.3.0 without a known digest", "use --proxy builtin"},
	}},
	"images": {`[one, "x.test/two:1", "x.test/team/*", "x.test/three@` + digestA + `"]`, []request{
		{ask: func(r *Rules) error { return r.Image("docker.io/library/one:latest", "") }},
		{ask: func(r *Rules) error { return r.Image("docker.io/library/one@"+digestA, digestA) }},
		{ask: func(r *Rules) error { return r.Image("x.test/two:1", digestB) }},
		{ask: func(r *Rules) error { return r.Image("x.test/team/any/thing:9", "") }},
		{ask: func(r *Rules) error { return r.Image("x.test/three:5", digestA) }},
		{ask: func(r *Rules) error { return r.Image("x.test/three:5", "") }},
		{func(r *Rules) error { return r.Image("x.test/three:5", digestB) }, "image x.test/three:5 with the digest " + digestB + " is refused by images", "use an image that bottle policy show lists"},
		{func(r *Rules) error { return r.Image("x.test/two:2", "") }, "image x.test/two:2 is refused by images", ""},
		{func(r *Rules) error { return r.Image("x.test/teammate:1", "") }, "image x.test/teammate:1 is refused by images", ""},
		{func(r *Rules) error { return r.Image("docker.io/x.test/team/y:1", "") }, "image docker.io/x.test/team/y:1 is refused by images", ""},
	}},
	"egress.never": {`["*.evil.test", 203.0.113.7]`, []request{
		{ask: func(r *Rules) error { return r.Egress(allow("a.test", "*.test"), false) }},
		{func(r *Rules) error { return r.Egress(allow("a.test", "x.evil.test:8443"), false) }, "host x.evil.test:8443 is refused by egress.never", "remove it from the manifest"},
		{func(r *Rules) error { return r.Egress(egress.Entries{SSH: []string{"evil.test:22"}}, false) }, "host evil.test:22 is refused by egress.never", ""},
		{func(r *Rules) error { return r.Egress(allow("203.0.113.7"), false) }, "host 203.0.113.7 is refused by egress.never", ""},
		{func(r *Rules) error { return r.Build(false, []string{"evil.test"}) }, "host evil.test is refused by egress.never", "remove it from build.egress"},
	}},
	"egress.at_most": {`["*.good.test", "a.test:8080"]`, []request{
		{ask: func(r *Rules) error { return r.Egress(allow("x.good.test", "a.test:8080"), false) }},
		{ask: func(r *Rules) error { return r.Egress(egress.Entries{SSH: []string{"git.good.test:22"}}, false) }},
		{func(r *Rules) error { return r.Egress(allow("a.test"), false) }, "host a.test is refused by egress.at_most", "remove it from the manifest"},
		{func(r *Rules) error { return r.Egress(allow("*.test"), false) }, "host *.test is refused by egress.at_most", ""},
		{func(r *Rules) error { return r.Egress(allow(), true) }, "--learn, which allows every public host, is refused by egress.at_most", "run without it"},
		{func(r *Rules) error { return r.Build(false, []string{"bad.test"}) }, "host bad.test is refused by egress.at_most", ""},
	}},
	"egress.private": {`[10.1.0.0/16, intra.test]`, []request{
		{ask: func(r *Rules) error {
			return r.Egress(egress.Entries{AllowPrivate: []string{"10.1.2.0/24", "10.1.3.4", "intra.test"}}, false)
		}},
		{func(r *Rules) error { return r.Egress(egress.Entries{AllowPrivate: []string{"10.0.0.0/8"}}, false) }, "private destination 10.0.0.0/8 is refused by egress.private", "remove it from egress.allow_private"},
		{func(r *Rules) error { return r.Egress(egress.Entries{AllowPrivate: []string{"127.0.0.1"}}, false) }, "private destination 127.0.0.1/32 is refused by egress.private", ""},
		{func(r *Rules) error { return r.Egress(egress.Entries{AllowPrivate: []string{"*.intra.test"}}, false) }, "private destination *.intra.test is refused by egress.private", ""},
	}},
	"limits.memory": {"2GiB", []request{
		{ask: limits(manifest.Limits{Memory: 2 << 30})}, {ask: limits(manifest.Limits{})},
		{limits(manifest.Limits{Memory: 3 << 30}), "memory 3GiB, which is more than 2GiB, is refused by limits.memory", "set at most 2GiB"},
	}},
	"limits.disk": {"2GiB", []request{
		{ask: limits(manifest.Limits{Disk: 2 << 30})}, {ask: limits(manifest.Limits{})},
		{limits(manifest.Limits{Disk: 3 << 30}), "disk 3GiB, which is more than 2GiB, is refused by limits.disk", "set at most 2GiB"},
	}},
	"limits.workspace": {"2GiB", []request{
		{ask: limits(manifest.Limits{Workspace: 2 << 30})}, {ask: limits(manifest.Limits{})},
		{limits(manifest.Limits{Workspace: 3 << 30}), "workspace 3GiB, which is more than 2GiB, is refused by limits.workspace", "set at most 2GiB"},
	}},
	"kept_work": {"false", []request{
		{(*Rules).KeptWork, "a workspace, which is kept at the end, is refused by kept_work", "use --cwd-image"},
	}},
	"limits.cpus": {"1.5", []request{
		{ask: limits(manifest.Limits{CPUs: 1.5})}, {ask: limits(manifest.Limits{})},
		{limits(manifest.Limits{CPUs: 2}), "cpus 2, which is more than 1.5, is refused by limits.cpus", "set at most 1.5"},
	}},
	"limits.pids": {"100", []request{
		{ask: limits(manifest.Limits{Pids: 100})}, {ask: limits(manifest.Limits{})},
		{limits(manifest.Limits{Pids: 101}), "pids 101, which is more than 100, is refused by limits.pids", "set at most 100"},
	}},
	"bottles_per_user": {"2", []request{
		{ask: func(r *Rules) error { return r.Bottles(2) }},
		{func(r *Rules) error { return r.Bottles(3) }, "bottle 3 of at most 2 is refused by bottles_per_user", "remove a bottle"},
	}},
	"builds.allowed": {"false", []request{
		{func(r *Rules) error { return r.Build(false, nil) }, "a build is refused by builds.allowed", "use an image that exists"},
		{func(r *Rules) error { return r.Build(true, nil) }, "a build is refused by builds.allowed", ""},
	}},
	"builds.host_network": {"true", []request{
		{ask: func(r *Rules) error { return r.Build(true, nil) }}, {ask: func(r *Rules) error { return r.Build(false, nil) }},
	}},
	"builds.at_most": {`["*.good.test"]`, []request{
		{ask: func(r *Rules) error { return r.Build(false, []string{"x.good.test"}) }},
		{func(r *Rules) error { return r.Build(false, []string{"bad.test"}) }, "host bad.test is refused by builds.at_most", "remove it from the manifest"},
	}},
	"learn": {"false", []request{
		{ask: func(r *Rules) error { return r.Egress(allow("a.test"), false) }},
		{func(r *Rules) error { return r.Egress(allow("a.test"), true) }, "--learn is refused by learn", "run without it"},
	}},
	"secrets": {"[environment, ssh_agent]", []request{
		{ask: func(r *Rules) error { return r.Secret(SecretEnvironment, "TOKEN") }},
		{func(r *Rules) error { return r.Secret(SecretCommandLine, "TOKEN") }, "secret TOKEN from command line is refused by secrets", "remove it from the request"},
		{func(r *Rules) error { return r.Secret(SecretSSHCopy, "git") }, "secret git from ssh copy is refused by secrets", ""},
	}},
	"version": {"1", nil},
}

func text(key, value string) string {
	outer, inner, nested := strings.Cut(key, ".")
	if nested {
		value = "{" + inner + ": " + value + "}"
	}
	if outer == "version" {
		return "version: " + value + "\n"
	}
	return "version: 1\n" + outer + ": " + value + "\n"
}

// TestKeys: each key of the policy allows and refuses what it should, and the refusal
// names the key, the file and what to do.
func TestKeys(t *testing.T) {
	if got, want := slices.Sorted(maps.Keys(keys)), schemaKeys(t); !slices.Equal(got, want) {
		t.Errorf("the table has the keys\n%q, the schema\n%q", got, want)
	}
	schema := compileSchema(t)
	for key, c := range keys {
		t.Run(key, func(t *testing.T) {
			p, err := Parse("/p", []byte(text(key, c.value)))
			if err != nil {
				t.Fatal(err)
			}
			if err := schema.Validate(value(t, text(key, c.value))); err != nil {
				t.Errorf("the schema refuses the value: %v", err)
			}
			r := newRules(p, "/", func() bool { t.Error("sudo was asked although there is a policy"); return true })
			for i, one := range c.requests {
				one.check(t, i, r)
			}
		})
	}
}

func (one request) check(t *testing.T, i int, r *Rules) {
	t.Helper()
	err := one.ask(r)
	if one.refused == "" {
		if err != nil {
			t.Errorf("request %d is refused: %v", i, err)
		}
		return
	}
	refusal, ok := errors.AsType[*Refusal](err)
	if !ok || !strings.HasPrefix(err.Error(), one.refused) || !strings.HasSuffix(err.Error(), " in /p") || !strings.Contains(hint.Of(err), one.hint) {
		t.Errorf("request %d: %v; hint: %s", i, err, hint.Of(err))
	} else if !strings.Contains(hint.Of(err), "ask root to change "+refusal.Key+" in /p") {
		t.Errorf("request %d: the hint does not name the key %s: %s", i, refusal.Key, hint.Of(err))
	}
	if err := one.ask(nil); err != nil { // root
		t.Errorf("request %d is refused to root: %v", i, err)
	}
}

// TestOtherValues: the keys that are true or false, with the other value than in keys.
func TestOtherValues(t *testing.T) {
	for key, c := range map[string]struct {
		value string
		request
	}{
		"builds.allowed":      {"true", request{ask: func(r *Rules) error { return r.Build(false, nil) }}},
		"builds.host_network": {"false", request{func(r *Rules) error { return r.Build(true, nil) }, "a build with the host's network is refused by builds.host_network", ""}},
		"kept_work":           {"true", request{ask: (*Rules).KeptWork}},
		"learn":               {"true", request{ask: func(r *Rules) error { return r.Egress(allow("a.test"), true) }}},
	} {
		p, err := Parse("/p", []byte(text(key, c.value)))
		if err != nil {
			t.Fatal(err)
		}
		c.check(t, 0, newRules(p, "/", notExempt))
	}
}

// TestDefaults: without a policy a user who cannot become root anyway gets gVisor, the
// built-in proxy and public hosts. A user who can is not bound.
func TestDefaults(t *testing.T) {
	for name, one := range map[string]request{
		"runsc":           {ask: func(r *Rules) error { return r.Runtime("runsc") }},
		"builtin":         {ask: func(r *Rules) error { return r.Proxy("builtin", "", "") }},
		"any image":       {ask: func(r *Rules) error { return r.Image("x.test/y:1", "") }},
		"public hosts":    {ask: func(r *Rules) error { return r.Egress(allow("*.test"), true) }},
		"limits":          {ask: limits(manifest.Limits{Memory: 1 << 40, CPUs: 1000})},
		"bottles":         {ask: func(r *Rules) error { return r.Bottles(1000) }},
		"a build":         {ask: func(r *Rules) error { return r.Build(false, []string{"a.test"}) }},
		"secrets":         {ask: func(r *Rules) error { return r.Secret(SecretSSHCopy, "git") }},
		"runc":            {func(r *Rules) error { return r.Runtime("runc") }, "runtime runc is refused: no policy allows it (runtimes in /d/policy.yaml)", ""},
		"pipelock":        {func(r *Rules) error { return r.Proxy("pipelock", "x/y:1", digestA) }, "proxy image x/y:1 with the digest", ""},
		"private network": {func(r *Rules) error { return r.Egress(egress.Entries{AllowPrivate: []string{"10.0.0.1"}}, false) }, "private destination 10.0.0.1/32 is refused: no policy allows it (egress.private in /d/policy.yaml)", ""},
		"host's network":  {func(r *Rules) error { return r.Build(true, nil) }, "a build with the host's network is refused: no policy", ""},
	} {
		err := one.ask(newRules(&Policy{}, "/d", func() bool { return false }))
		if (err == nil) != (one.refused == "") || err != nil && !strings.HasPrefix(err.Error(), one.refused) {
			t.Errorf("%s: %v", name, err)
		}
		if err := one.ask(newRules(&Policy{}, "/d", func() bool { return true })); err != nil {
			t.Errorf("%s is refused to a user who may become root: %v", name, err)
		}
	}
}

// TestLimitsAreLowered: a limit that the manifest does not set is at most the policy's,
// which is reported.
func TestLimitsAreLowered(t *testing.T) {
	p, err := Parse("/p", []byte("version: 1\nlimits: {memory: 2GiB, disk: 30GiB, cpus: 2, pids: 100}\n"))
	if err != nil {
		t.Fatal(err)
	}
	written := manifest.Limits{Pids: 50}
	got, bounds, err := newRules(p, "/", notExempt).Limits(written, written.OrDefault())
	if err != nil {
		t.Fatal(err)
	}
	if want := (manifest.Limits{Memory: 2 << 30, Disk: 20 << 30, CPUs: 2, Pids: 50, Workspace: written.OrDefault().Workspace}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	want := []Bound{{"limits.memory", "memory 2GiB instead of 4GiB"}, {"limits.cpus", "cpus 2 instead of no limit"}}
	if !slices.Equal(bounds, want) {
		t.Errorf("bounds %v", bounds)
	}
}

func compileSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("policy.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("policy.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func value(t *testing.T, text string) any {
	t.Helper()
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	out, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// schemaKeys returns the keys of the schema that have values, as "outer.inner".
func schemaKeys(t *testing.T) []string {
	t.Helper()
	type object struct {
		Properties map[string]struct {
			Properties map[string]any
		}
	}
	var s object
	if err := json.Unmarshal(Schema, &s); err != nil {
		t.Fatal(err)
	}
	var out []string
	for key, p := range s.Properties {
		if p.Properties == nil {
			out = append(out, key)
		}
		for inner := range p.Properties {
			out = append(out, key+"."+inner)
		}
	}
	slices.Sort(out)
	return out
}
