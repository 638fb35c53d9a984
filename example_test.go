package bottle_test

import (
	"context"
	"errors"
	"io"
	"log"
	"os"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/images/supply"
	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/session"
)

// runAgent runs an agent of a manifest in a bottle of its own, and returns its exit code.
func runAgent(ctx context.Context, cfg bottle.Config, spec plan.Spec, out io.Writer) (code int, err error) {
	engine, err := bottle.Open(ctx, cfg)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, engine.Close()) }()
	p, err := plan.Prepare(ctx, spec, engine) // creates nothing
	if err != nil {
		return 0, err
	}
	if p, err = engine.Images().Provide(ctx, p, supply.Options{Progress: "plain", Out: os.Stderr}); err != nil {
		return 0, err
	}
	b, err := engine.Launch(ctx, p)
	if err != nil {
		return 0, err
	}
	// What was started is removed also after ctx has ended.
	defer func() { err = errors.Join(err, b.Remove(context.WithoutCancel(ctx))) }()
	s, err := b.Exec(ctx, session.Config{Stdout: out, Stderr: out})
	if err != nil {
		return 0, err
	}
	return s.Wait()
}

// Run the agent "claude" of a manifest and print what it answers.
func Example() {
	cfg := bottle.ConfigFromEnv(os.Getenv)
	cfg.Program = "/usr/bin/bottle" // serves as proxy, shim and guest
	spec := plan.Spec{
		Agent: "claude", ManifestPath: "bottle.yaml", Proxy: "builtin",
		Args:   []string{"-p", "summarise README.md"},
		Caller: plan.CurrentCaller(), NoInput: true,
	}
	code, err := runAgent(context.Background(), cfg, spec, os.Stdout)
	if err != nil {
		log.Fatal(err)
	}
	os.Exit(code)
}

// List the running bottles and the hosts that each may reach.
func ExampleEngine_List() {
	ctx := context.Background()
	engine, err := bottle.Open(ctx, bottle.ConfigFromEnv(os.Getenv))
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = engine.Close() }()
	list, err := engine.List(ctx, true)
	if err != nil {
		log.Print(err)
		return
	}
	for _, b := range list {
		log.Printf("%s: agent %s, %s, since %s", b.Name, b.Agent, b.Status, b.Created)
	}
}

// Remove all bottles, also what crashed programs have left of them. Bottles that are being
// launched stay, and so does the work that is kept.
func ExampleEngine_RemoveLeftovers() {
	ctx := context.Background()
	engine, err := bottle.Open(ctx, bottle.ConfigFromEnv(os.Getenv))
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = engine.Close() }()
	leftovers, err := engine.FindLeftovers(ctx)
	if err == nil {
		err = engine.RemoveLeftovers(ctx, leftovers)
	}
	if err != nil {
		log.Print(err)
	}
}

// TestExample runs the function of the example.
func TestExample(t *testing.T) {
	leakcheck.Check(t)
	dir := t.TempDir()
	const manifest = "version: 1\nbottles: {dev: {}}\nagents: {it: {bottle: dev, command: [echo, hello]}}\n"
	if err := os.WriteFile(dir+"/bottle.yaml", []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := bottle.ConfigFromEnv(os.Getenv)
	cfg.Program = labtest.Program(t)
	spec := plan.Spec{Agent: "it", ManifestPath: dir + "/bottle.yaml", Proxy: "builtin", Args: []string{"from", "a bottle"}, Caller: plan.CurrentCaller(), NoInput: true}
	var out strings.Builder
	if code, err := runAgent(t.Context(), cfg, spec, &out); code != 0 || err != nil || out.String() != "hello from a bottle\n" {
		t.Errorf("exit %d, %v, %q", code, err, &out)
	}
}

// TestLibraryDocs: the code in docs/library.md is that of the examples.
func TestLibraryDocs(t *testing.T) {
	code, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("docs/library.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(text), "```go\n")[1:]
	if len(blocks) != 4 {
		t.Errorf("docs/library.md has %d blocks of code, want 4", len(blocks))
	}
	for _, block := range blocks {
		block, _, _ = strings.Cut(block, "```\n")
		if !strings.Contains(string(code), "\n"+block) {
			t.Errorf("not in example_test.go:\n%s", block)
		}
	}
}
