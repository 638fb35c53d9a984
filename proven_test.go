package bottle

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/internal/proven"
)

// TestLaunchProves: a launch that succeeds records the checks of its plan, and neither a plan
// nor a launch that fails does. Cleanup removes the records, and the removal of a bottle does not.
func TestLaunchProves(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	records := func() (list []string) {
		t.Helper()
		entries, err := os.ReadDir(filepath.Join(e.cfg.RunDir, proven.Dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for _, entry := range entries {
			list = append(list, entry.Name())
		}
		return list
	}
	e.forgetProven()
	spec := testSpec(t, simpleManifest)
	p := prepare(t, e, spec)
	if list := records(); len(list) > 0 {
		t.Errorf("records of a plan: %q", list)
	}
	b, err := e.Launch(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	all := []string{"kernel", "runc", "runsc"}
	if list := records(); !slices.Equal(list, all) {
		t.Errorf("records of a launch: %q", list)
	}
	if err := b.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if list := records(); !slices.Equal(list, all) {
		t.Errorf("records after the bottle's end: %q", list)
	}
	other := openEngine(t)
	for _, name := range []string{"runsc", "runc"} {
		if !other.rt.Proven(t.Context(), name) {
			t.Errorf("the next plan checks %s again", name)
		}
	}
	restore := setHooks(e, testHooks{step: func(step string, _ bool) error {
		if step == "start agent" {
			return errInjected
		}
		return nil
	}})
	_, err = e.Launch(t.Context(), p)
	restore()
	if !errors.Is(err, errInjected) {
		t.Fatalf("Launch = %v", err)
	}
	if list := records(); len(list) > 0 {
		t.Errorf("records after a launch that failed: %q", list)
	}
	b, err = other.Launch(t.Context(), prepare(t, other, spec))
	if err != nil {
		t.Fatal(err)
	}
	if list := records(); !slices.Equal(list, all) {
		t.Errorf("records of another launch: %q", list)
	}
	if err := errors.Join(b.Remove(t.Context()), e.RemoveLeftovers(t.Context(), nil)); err != nil {
		t.Fatal(err)
	}
	if list := records(); !slices.Equal(list, all) {
		t.Errorf("records after a removal: %q", list)
	}
	if err := e.Forget(); err != nil {
		t.Fatal(err)
	}
	if list := records(); len(list) > 0 {
		t.Errorf("records after cleanup: %q", list)
	}
}
