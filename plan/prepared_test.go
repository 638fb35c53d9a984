package plan

import (
	"testing"

	"github.com/bot-bottle/bottle/manifest"
)

// TestPreparePrepared: a prepared bottle gives the run its name, unless the run needs
// something that cannot be given to a bottle that is running.
func TestPreparePrepared(t *testing.T) {
	const prepared = "claude-bottle-impl-7"
	s := newScene(t, "", "pool: 2")
	want := func(what, name, reason string) {
		t.Helper()
		got := s.good()
		if p := got.Prepared; p == nil || p.Name != name || p.Reason != reason || got.Pool != 2 || (got.Name == prepared) != (name != "") {
			t.Errorf("%s: %+v, name %s, pool of %d", what, p, got.Name, got.Pool)
		}
	}
	want("none", "", reasonNone)
	s.host.prepared = prepared
	want("one", prepared, "")
	s.spec.Name = "mine"
	want("a name", "", reasonName)
	s.spec.Name, s.spec.Cwd = "", true
	want("a directory", "", reasonDirectory)
	s.spec.Cwd, s.spec.CwdImage = false, true
	want("an image with a directory", "", reasonDirectory)
	s.spec.CwdImage, s.spec.NamesOnly = false, true
	if got := s.good(); got.Prepared != nil {
		t.Errorf("a plan without values: %+v", got.Prepared)
	}
	s.spec.NamesOnly, s.spec.Proxy = false, manifest.ProxyPipelock
	want("pipelock", "", reasonProxy)
	s.spec.Proxy = manifest.ProxyBuiltin
	clear(s.host.images)
	want("no image", "", reasonImage)
	if s = newScene(t, "", ""); s.good().Prepared != nil {
		t.Error("without a pool there is a prepared bottle")
	}
}
