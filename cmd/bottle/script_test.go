package main

import (
	"context"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/bot-bottle/bottle/internal/cliscript"
	"github.com/bot-bottle/bottle/plan"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"bottle": func() { os.Exit(scriptProgram()) }})
}

// scriptProgram is bottle with a fake host for dry runs.
func scriptProgram() int {
	a := &app{ctx: context.Background(), stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	a.policyDir = os.Getenv("TEST_POLICY_DIR")
	a.withHost = func(fn func(plan.Host) error) error { return fn(fakeHost{}) }
	return a.execute(os.Args[1:])
}

// fakeHost has the default agent image, gVisor, and a bottle named
// claude-bottle-busy.
type fakeHost struct{}

func (fakeHost) Taken(context.Context) (map[string]bool, error) {
	return map[string]bool{"claude-bottle-busy": true}, nil
}

func (fakeHost) Image(_ context.Context, ref string) (plan.ImageInfo, error) {
	if ref != "docker.io/library/claude-bottle:latest" {
		return plan.ImageInfo{}, plan.ErrImageMissing
	}
	return plan.ImageInfo{Ref: ref, Cmd: []string{"claude"}, User: "agent", WorkDir: "/home/agent"}, nil
}

func (fakeHost) Runtime(context.Context, string) error { return nil }

func (fakeHost) Network(context.Context) (plan.Network, error) {
	return plan.Network{Internal: "10.77.0.0/30", Egress: "10.210.0.0/16", Bridge: "bottle0"}, nil
}

func (fakeHost) Prepared(context.Context, *plan.Plan) (string, error) { return "", nil }

func (fakeHost) Workspace(context.Context, int64) ([]string, error) { return nil, nil }

// TestScripts runs bottle as testdata/script describes. The scripts need neither
// root nor containerd.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       *update,
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.WorkDir+"/home")
			return os.Mkdir(env.WorkDir+"/home", 0o700)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exit": cliscript.Exit},
	})
}
