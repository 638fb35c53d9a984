package bottle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/provision"
	"github.com/bot-bottle/bottle/runtime"
)

const preparedManifest = `
version: 1
bottles:
  dev:
    env: {LOG_LEVEL: debug, TOKEN: {from: TOKEN}, KEY: {from: KEY, inject: [allowed.test]}}
    egress: {allow: [allowed.test]}
    git: {name: A Person, email: a@b.test}
agents:
  it: {bottle: dev, command: [sh], prompt: Do it., pool: 2}
`

// Secrets of a run, which no prepared bottle may contain.
const (
	preparedToken    = "token-of-the-run-4711"
	preparedInjected = "injected-secret-of-the-run-0815"
)

// preparedSpecs returns the spec with which bottles are prepared, and that of a run.
func preparedSpecs(t *testing.T) (pool, run plan.Spec) {
	t.Helper()
	run = testSpec(t, preparedManifest)
	run.Caller.Getenv = func(name string) (string, bool) {
		v, ok := map[string]string{"TOKEN": preparedToken, "KEY": preparedInjected}[name]
		return v, ok
	}
	pool = run
	pool.NamesOnly = true
	return pool, run
}

// fill fills a pool and returns the names in it. They are removed at the end.
func fill(t *testing.T, e *Engine, p *plan.Plan, count int) []string {
	t.Helper()
	t.Cleanup(func() {
		if err := e.DrainPool(context.WithoutCancel(t.Context()), func(PreparedBottle) bool { return true }); err != nil {
			t.Error(err)
		}
	})
	if err := e.FillPool(t.Context(), p, count); err != nil {
		t.Fatal(err)
	}
	return poolNames(t, e)
}

func poolNames(t *testing.T, e *Engine) []string {
	t.Helper()
	pool, err := e.Pool(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, b := range pool {
		if b.State != PreparedReady {
			t.Errorf("%s is %s", b.Name, b.State)
		}
		names = append(names, b.Name)
	}
	return names
}

// claimOne launches the bottle of a spec, which has to be a prepared one.
func claimOne(t *testing.T, e *Engine, s plan.Spec) *Bottle {
	t.Helper()
	p := prepare(t, e, s)
	if p.Prepared == nil || p.Prepared.Name == "" {
		t.Fatalf("no prepared bottle: %+v", p.Prepared)
	}
	pool := poolNames(t, e)
	b, err := e.Launch(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(pool, b.Name) {
		t.Fatalf("%s is not one of %v", b.Name, pool)
	}
	return b
}

// TestPreparedKey: every field of a key changes it.
func TestPreparedKey(t *testing.T) {
	sums := map[string]string{}
	add := func(what string, k preparedKey) {
		sum, err := k.sum()
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := sums[sum]; ok {
			t.Errorf("%s has the key of %s", what, other)
		}
		sums[sum] = what
	}
	add("nothing", preparedKey{})
	var change func(what string, k *preparedKey, v reflect.Value)
	change = func(what string, k *preparedKey, v reflect.Value) {
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				change(what+"."+v.Type().Field(i).Name, k, v.Field(i))
			}
			return
		case reflect.Array:
			for i := range v.Len() {
				change(fmt.Sprint(what, i), k, v.Index(i))
			}
			return
		case reflect.String:
			v.SetString("x")
		case reflect.Int, reflect.Int64:
			v.SetInt(1)
		case reflect.Float64:
			v.SetFloat(1)
		case reflect.Bool:
			v.SetBool(true)
		case reflect.Slice:
			v.Set(reflect.ValueOf([]string{"x"}))
		default:
			t.Fatalf("%s is a %s", what, v.Kind())
		}
		add(what, *k)
		v.SetZero()
	}
	k := &preparedKey{}
	change("key", k, reflect.ValueOf(k).Elem())
	t.Logf("%d keys", len(sums))
}

// TestPrepared: a run claims a prepared bottle, which is then as one that was launched for
// it, and is used once.
func TestPrepared(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	pool, run := preparedSpecs(t)
	names := fill(t, e, prepare(t, e, pool), 2)
	if len(names) != 2 {
		t.Fatalf("prepared: %v", names)
	}
	visible := func(all bool) (out []string) {
		list, err := e.List(t.Context(), all)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list {
			out = append(out, s.Name+" "+s.Status)
		}
		slices.Sort(out)
		return out
	}
	if got, want := visible(true), []string{names[0] + " prepared", names[1] + " prepared"}; !slices.Equal(got, want) || len(visible(false)) > 0 {
		t.Errorf("listed: %v and %v, want %v and none", got, visible(false), want)
	}
	if name, err := e.Resolve(t.Context(), names[0]); err == nil {
		t.Errorf("%s can be used before a run has claimed it", name)
	}
	// What the run gives it is not there before, and its proxy refuses what it will allow.
	const look = `echo "$LOG_LEVEL$TOKEN$KEY$BOTTLE_PROMPT_FILE"; ls -A /.bottle | tr '\n' ' '; curl -sS -o /dev/null -w ' %{http_code}' http://allowed.test/`
	if out, code := output(t, e, names[0], "sh", "-c", look); out != "\nca.pem env init run ssh workdir  403" || code != 0 {
		t.Errorf("in a prepared bottle: %q, %d", out, code)
	}
	for _, dir := range []string{e.dir(names[0]), e.stateDir(names[0])} {
		if out, err := exec.Command("grep", "-rlE", preparedToken+"|"+preparedInjected, dir).CombinedOutput(); err == nil {
			t.Errorf("a prepared bottle contains a secret: %s", out)
		}
	}
	b := claimOne(t, e, run)
	defer remove(t, b)
	if b.Name != names[0] {
		t.Errorf("claimed %s of %v", b.Name, names)
	}
	out, code := output(t, e, b.Name, "sh", "-c", `echo "$LOG_LEVEL $TOKEN"; cat "$BOTTLE_PROMPT_FILE"; hostname; test "$KEY" && curl -sS -o /dev/null -w ' %{http_code}' http://allowed.test/; curl -sS -o /dev/null -w ' %{http_code}' http://denied.test/`)
	if want := "debug " + preparedToken + "\nDo it." + b.Name + "\n 200 403"; out != want || code != 0 {
		t.Errorf("in the claimed bottle: %q, %d, want %q", out, code, want)
	}
	if got, want := visible(false), []string{b.Name + " running"}; !slices.Equal(got, want) {
		t.Errorf("listed after the claim: %v, want %v", got, want)
	}
	if left := poolNames(t, e); !slices.Equal(left, names[1:]) {
		t.Errorf("left in the pool: %v", left)
	}
}

// TestPreparedSelection: a run uses no bottle that was prepared for other settings, by
// another version of a program or for another user, and the next fill removes it.
func TestPreparedSelection(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	pool, run := preparedSpecs(t)
	names := fill(t, e, prepare(t, e, pool), 1)
	want := func(what string, e *Engine, s plan.Spec, change func(*plan.Plan), name string) {
		t.Helper()
		p := prepare(t, e, s)
		if change != nil {
			change(p)
		}
		if got, err := e.Prepared(t.Context(), p); got != name || err != nil {
			t.Errorf("%s: %q, %v; want %q", what, got, err, name)
		}
	}
	want("the same run", e, run, nil, names[0])
	literal := run
	literal.Env = []string{"LOG_LEVEL=other", "MORE=1"}
	want("other variables", e, literal, nil, names[0])
	key := func(p *plan.Plan) *provision.Variable {
		return &p.Env[slices.IndexFunc(p.Env, func(v provision.Variable) bool { return v.Name == "KEY" })]
	}
	for what, change := range map[string]func(*plan.Plan){
		"image":    func(p *plan.Plan) { p.ImageDigest = "sha256:" + strings.Repeat("0", 64) },
		"limits":   func(p *plan.Plan) { p.Limits.Pids++ },
		"runtime":  func(p *plan.Plan) { p.Runtime = runtime.RuntimeRunc },
		"proxy":    func(p *plan.Plan) { p.Proxy.Memory = 1 << 30 },
		"manifest": func(p *plan.Plan) { p.Manifest += "x" },
		"agent":    func(p *plan.Plan) { p.Agent += "x" },
		"git":      func(p *plan.Plan) { p.Git = &manifest.Git{Name: "Another", Email: "a@b.test"} },
		"home": func(p *plan.Plan) {
			p.Env = append(p.Env, provision.Variable{Name: "HOME", Source: manifest.SourceLiteral, Literal: "/elsewhere"})
		},
		"secret host": func(p *plan.Plan) { key(p).Inject = []string{"other.test:443"} },
	} {
		want("another "+what, e, run, change, "")
	}
	guest := openEngine(t, func(c *Config) {
		c.Guest = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("another version")), nil }
	})
	want("another guest program", guest, run, nil, "")
	other := openEngine(t, func(c *Config) { c.Owner = 41002 })
	want("another user", other, run, nil, "")
	if list := poolNames(t, other); len(list) > 0 {
		t.Errorf("another user sees %v", list)
	}
	// Of another user's bottles, root neither claims nor drains any.
	ada := openEngine(t, func(c *Config) { c.Owner = 41001 })
	adas := fill(t, ada, prepare(t, ada, pool), 1)
	want("root", e, run, nil, names[0])
	if err := e.DrainPool(t.Context(), func(PreparedBottle) bool { return true }); err != nil {
		t.Error(err)
	}
	if left := poolNames(t, ada); !slices.Equal(left, adas) {
		t.Errorf("left of another user's pool: %v, want %v", left, adas)
	}
	// An outdated one is replaced.
	outdated := prepare(t, ada, pool)
	outdated.Limits.Pids++
	if got, err := ada.Prepared(t.Context(), outdated); got != "" || err != nil {
		t.Errorf("an outdated one: %q, %v", got, err)
	}
	fill(t, ada, outdated, 1)
	if got, err := ada.Prepared(t.Context(), outdated); got == "" || err != nil || len(poolNames(t, ada)) != 1 {
		t.Errorf("after a change of the limits: %q, %v, of %v", got, err, poolNames(t, ada))
	}
	if err := ada.FillPool(t.Context(), outdated, 0); err != nil || len(poolNames(t, ada)) > 0 {
		t.Errorf("an empty pool: %v, %v", poolNames(t, ada), err)
	}
}

// TestPreparedClaimers: of concurrent runs, no two get the same bottle, and one for which
// none is left gets a new one.
func TestPreparedClaimers(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	pool, run := preparedSpecs(t)
	names := fill(t, e, prepare(t, e, pool), 1)
	p := prepare(t, e, run)
	var bottles [2]*Bottle
	var errs [2]error
	// Both have chosen the bottle before one claims it.
	var chosen sync.WaitGroup
	chosen.Add(len(bottles))
	defer setHooks(e, testHooks{step: func(step string, done bool) error {
		if step == "claim prepared" && !done {
			chosen.Done()
			chosen.Wait()
		}
		return nil
	}})()
	var wg sync.WaitGroup
	for i := range bottles {
		wg.Go(func() { bottles[i], errs[i] = e.Launch(t.Context(), p) })
	}
	wg.Wait()
	claimed := 0
	for i, b := range bottles {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
		defer remove(t, b)
		if b.Name == names[0] {
			claimed++
		}
	}
	if claimed != 1 || bottles[0].Name == bottles[1].Name {
		t.Errorf("%s and %s run, prepared: %v", bottles[0].Name, bottles[1].Name, names)
	}
}

// TestPreparedFaults fails each step of a claim, before and after it: the bottle is
// removed, and never used by another run. So is one that has died.
func TestPreparedFaults(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	pool, run := preparedSpecs(t)
	ahead := prepare(t, e, pool)
	for _, step := range []string{"claim prepared", "give policy", "give files", "find agent", "end claim"} {
		names := fill(t, e, ahead, 1)
		for _, after := range []bool{false, true} {
			if after != (step == "end claim") && step != "claim prepared" {
				continue // one moment is enough for what is done concurrently
			}
			p := prepare(t, e, run)
			restore := setHooks(e, testHooks{step: func(s string, done bool) error {
				if s == step && done == after {
					return errInjected
				}
				return nil
			}})
			if b, err := e.Launch(t.Context(), p); !errors.Is(err, errInjected) || b != nil {
				t.Errorf("%s, %t: Launch = %v, %v; want the injected error", step, after, b, err)
			}
			restore()
			want := []string(nil)
			if step == "claim prepared" && !after { // it was not touched
				want = names
			}
			if left := poolNames(t, e); !slices.Equal(left, want) {
				t.Errorf("%s, %t: left in the pool: %v, want %v", step, after, left, want)
			}
		}
	}
	names := fill(t, e, ahead, 1)
	p := prepare(t, e, run)
	proxy := names[0] + runtime.ProxySuffix
	if err := e.rt.Signal(t.Context(), proxy, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for running := true; running; time.Sleep(10 * time.Millisecond) {
		var err error
		if running, err = e.rt.RunningOnHost(t.Context(), proxy); err != nil {
			t.Fatal(err)
		}
	}
	if got := prepare(t, e, run).Prepared; got.Name != "" || got.Reason == "" {
		t.Errorf("a bottle whose proxy has died is to be used: %+v", got)
	}
	b, err := e.Launch(t.Context(), p) // which was planned before
	if err != nil {
		t.Fatal(err)
	}
	defer remove(t, b)
	if b.Name == names[0] {
		t.Error("a bottle whose proxy has died is used")
	}
	if next := fill(t, e, ahead, 1); len(next) != 1 {
		t.Errorf("after a fill: %v", next)
	}
}

// TestProgramsSum: programs with an identity are not read, and another identity is another
// sum; without one, another content is.
func TestProgramsSum(t *testing.T) {
	opened := 0
	sum := func(identity, content string) string {
		t.Helper()
		c := Config{Program: "/proc/self/exe", Programs: identity, Guest: func() (io.ReadCloser, error) {
			opened++
			return io.NopCloser(strings.NewReader(content)), nil
		}}
		s, err := c.programsSum()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if first := sum("a", "one"); first == sum("b", "one") || first != sum("a", "one") {
		t.Error("the sum does not follow the identity")
	}
	if opened > 0 {
		t.Errorf("read %d times in spite of an identity", opened)
	}
	if sum("", "one") == sum("", "two") || opened != 2 {
		t.Errorf("the sum does not follow the content, read %d times", opened)
	}
}
