package bottle

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/runtime"
	"github.com/bot-bottle/bottle/session"
)

func TestMain(m *testing.M) {
	if fault := os.Getenv(faultEnv); fault != "" {
		os.Exit(faultChild(fault))
	}
	if kill := os.Getenv(memoryKillEnv); kill != "" {
		os.Exit(memoryChild(kill))
	}
	os.Exit(labtest.Main(m))
}

// openEngine connects to the test host's containerd, with the changes to its
// configuration.
func openEngine(t *testing.T, changes ...func(*Config)) *Engine {
	t.Helper()
	cfg := ConfigFromEnv(os.Getenv)
	cfg.Program, cfg.Runsc = labtest.Program(t), labtest.Embedded(t, "runsc")
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	for _, change := range changes {
		change(&cfg)
	}
	e, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// setHooks sets the hooks of an engine and returns a function that restores the
// previous ones.
func setHooks(e *Engine, hooks testHooks) (restore func()) {
	before := e.hooks
	e.hooks = hooks
	return func() { e.hooks = before }
}

// testSpec returns a spec for the agent of the given manifest, which it writes.
func testSpec(t *testing.T, file string) plan.Spec {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/bottle.yaml", []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	return plan.Spec{
		Agent: "it", Proxy: manifest.ProxyBuiltin,
		Caller: caller.Caller{
			Getenv:  func(string) (string, bool) { return "", false },
			WorkDir: dir, Home: dir, UID: os.Getuid(), GID: os.Getgid(),
		},
	}
}

const simpleManifest = `
version: 1
bottles:
  dev:
    env: {LOG_LEVEL: debug}
    egress: {allow: [allowed.test]}
agents:
  it: {bottle: dev, command: [sh]}
`

func prepare(t *testing.T, e *Engine, s plan.Spec) *plan.Plan {
	t.Helper()
	plan, err := plan.Prepare(t.Context(), s, e)
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// output runs a command in a bottle and returns its output on both streams.
func output(t *testing.T, e *Engine, name string, command ...string) (string, int) {
	t.Helper()
	var out strings.Builder
	s, err := e.Exec(context.WithoutCancel(t.Context()), name, session.Config{Command: command, Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatal(err)
	}
	code, err := s.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), code
}

// TestRuntimeNames compares the names of runtimes in package plan, which does not import
// containerd, with those in package runtime.
func TestRuntimeNames(t *testing.T) {
	if plan.Runsc != runtime.RuntimeRunsc || plan.Runc != runtime.RuntimeRunc {
		t.Error("the names in packages plan and runtime differ")
	}
}
