package bottle

import (
	"errors"
	"os"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// TestFindByName: the bottle that a user names is found by its directory, which costs
// nothing for other bottles: containerd is not asked. Otherwise everything that belongs to
// a name is searched for, and a name as it was entered precedes that with the prefix.
func TestFindByName(t *testing.T) {
	leakcheck.Check(t)
	cfg := ConfigFromEnv(os.Getenv)
	cfg.RunDir, cfg.StateDir = t.TempDir(), t.TempDir()
	open := func() *Engine {
		e, err := Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	e, offline := open(), open()
	defer func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := offline.Close(); err != nil {
		t.Fatal(err)
	}
	const short, long = "x", "claude-bottle-x"
	put := func(dirs ...string) {
		for _, dir := range dirs {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	drop := func(dir string) {
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
	want := func(what string, e *Engine, name, want string) {
		t.Helper()
		got, err := e.Resolve(t.Context(), name)
		if got != want || (err != nil) != (want == "") || err != nil && !errors.Is(err, ErrNoBottle) {
			t.Errorf("%s: %q is %q, %v; want %q", what, name, got, err, want)
		}
	}
	put(e.dir(long))
	want("one bottle, without containerd", offline, long, long)
	want("one bottle", e, short, long)
	put(e.dir(short))
	want("two bottles, without containerd", offline, short, short)
	drop(e.dir(short))
	put(e.stateDir(short))
	want("a rest of another", e, short, short)
	drop(e.stateDir(short))
	want("no rest", e, short, long)
	put(e.dir(".hidden"), e.dir(long)+"/inside")
	for _, name := range []string{"", ".", "..", ".hidden", long + "/inside", "../" + cfg.Namespace, "none"} {
		want("no bottle", e, name, "")
	}
	if err := os.WriteFile(e.dir("file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	want("a file", e, "file", "")
}
