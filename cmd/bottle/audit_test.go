package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/audit"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/policy"
	"github.com/bot-bottle/bottle/proxy"
)

// auditApp returns an app whose events go to a file.
func auditApp(t *testing.T, path string) *app {
	rules := policy.Bind(&policy.Policy{Path: "/p", SHA256: "cc", Runtimes: []string{"runsc"}, NoLearn: true})
	a := &app{ctx: t.Context(), stderr: os.Stderr, sys: &system{config: &policy.Config{}, rules: rules}}
	a.audit = audit.Open(audit.Config{To: path, OnFailure: audit.Stop}, audit.Who{UID: 1000, Command: "run"}, func(err error) { t.Error(err) })
	return a
}

// events reads the fields that a test compares.
func events(t *testing.T, path string) (out []string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var e audit.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		out = append(out, strings.Join([]string{e.Kind, e.Bottle, e.Action, e.Entry, strings.Join(e.Entries, "+"), e.Secret, e.PolicyKey, e.PolicySHA256, e.Error}, "|"))
	}
	return out
}

// TestAuditRefusals: each refusal is an event, wherever it is in an error.
func TestAuditRefusals(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	a := auditApp(t, path)
	runtime := a.sys.rules.Runtime("runc")
	learn := &policy.Refusal{Key: "learn", Path: "/p", What: "--learn"}
	choice := &policy.Refused{Key: policy.Address, What: "--address x"}
	for name, c := range map[string]struct {
		err  error
		want []string
	}{
		"none":     {errors.New("x"), nil},
		"nil":      {nil, nil},
		"one":      {runtime, []string{"refusal||||||runtimes|cc|"}},
		"several":  {hint.Problems{runtime, errors.New("x"), learn}, []string{"refusal||||||runtimes|cc|", "refusal||||||learn|cc|"}},
		"wrapped":  {hint.Wrap(runtime, "build"), []string{"refusal||||||runtimes|cc|"}},
		"choice":   {choice, []string{"refusal||||||address|cc|"}},
		"internal": {internalCall("x"), []string{"refusal||||||internal|cc|"}},
	} {
		_ = os.Remove(path)
		if err := a.auditRefusals(c.err); !reflect.DeepEqual(err, c.err) {
			t.Errorf("%s: got %v", name, err)
		}
		if got := events(t, path); !slices.Equal(got, c.want) {
			t.Errorf("%s: events %q, want %q", name, got, c.want)
		}
	}
}

// TestAuditStops: a refusal that cannot be recorded is reported with the failure.
func TestAuditStops(t *testing.T) {
	a := auditApp(t, filepath.Join(t.TempDir(), "none", "log"))
	refusal := a.sys.rules.Runtime("runc")
	if err := a.auditRefusals(refusal); !errors.Is(err, refusal) || !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// TestAuditedChange: a change is written before it is done, and then its result.
func TestAuditedChange(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	a := auditApp(t, path)
	var before []string
	verb := func(change proxy.PolicyChange, err error) policyVerb {
		return policyVerb{action: "allow", change: func(*proxy.Manager, context.Context, string, string) (proxy.PolicyChange, error) {
			before = events(t, path)
			return change, err
		}}
	}
	const announced = "policy_change|b|allow|@x|||||"
	for name, c := range map[string]struct {
		change proxy.PolicyChange
		err    error
		want   []string
	}{
		"changed":   {proxy.PolicyChange{Changed: true, Entries: []string{"a.test", "b.test"}}, nil, []string{announced, "policy_change|b|allow|@x|a.test+b.test||||"}},
		"unchanged": {proxy.PolicyChange{}, nil, []string{announced}},
		"failed":    {proxy.PolicyChange{}, errors.New("broken"), []string{announced, "policy_change|b|allow|@x|||||broken"}},
	} {
		_ = os.Remove(path)
		if _, err := a.auditedChange(noProxies{}, verb(c.change, c.err), "b", "@x"); !errors.Is(err, c.err) {
			t.Errorf("%s: %v", name, err)
		}
		if got := events(t, path); !slices.Equal(got, c.want) || !slices.Equal(before, c.want[:1]) {
			t.Errorf("%s: events %q, before the change %q, want %q", name, got, before, c.want)
		}
	}
	a = auditApp(t, filepath.Join(dir, "none", "log"))
	before = nil
	if _, err := a.auditedChange(noProxies{}, verb(proxy.PolicyChange{Changed: true}, nil), "b", "@x"); !errors.Is(err, os.ErrNotExist) || before != nil {
		t.Errorf("a change that cannot be recorded: %v", err)
	}
}

type noProxies struct{}

func (noProxies) Proxies() *proxy.Manager { return nil }

// TestAuditBuild: the secrets of a plan's build are written, and without a record there
// is no build.
func TestAuditBuild(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	p := &plan.Plan{Name: "b", Build: &plan.Build{Image: "i", Secrets: []plan.BuildSecret{{ID: "npm"}, {ID: "token"}}}}
	if err := auditApp(t, path).auditBuild(p); err != nil {
		t.Fatal(err)
	}
	if got, want := events(t, path), []string{"secret_use|b||||npm|||", "secret_use|b||||token|||"}; !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
	if err := auditApp(t, filepath.Join(dir, "none", "log")).auditBuild(p); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if err := (&app{}).auditBuild(p); err != nil {
		t.Errorf("without a log: %v", err)
	}
}
