package egress

import (
	"maps"
	"os"
	"reflect"
	"slices"
	"testing"

	"go.yaml.in/yaml/v4"
)

// The rendered configuration equals, key by key, the one that was run with
// pipelock 2.3.0.
func TestRender(t *testing.T) {
	p, err := Entries{
		Allow:        []string{"api.example.test:8443", "*.wild.test", "internal.example.test", "10.77.0.10"},
		SSH:          []string{"git.example.test", "git.example.test:2222"},
		AllowPrivate: []string{"internal.example.test", "10.77.0.10"},
	}.Policy()
	if err != nil {
		t.Fatal(err)
	}
	golden, err := os.ReadFile("testdata/pipelock.yaml")
	if err != nil {
		t.Fatal(err)
	}
	rendered, err := p.Render("2.3.0")
	if err != nil {
		t.Fatal(err)
	}
	got, want := yamlKeys(t, rendered), yamlKeys(t, golden)
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if !reflect.DeepEqual(got[key], want[key]) {
			t.Errorf("%s is %v, want %v", key, got[key], want[key])
		}
		delete(got, key)
	}
	for key := range got {
		t.Errorf("unexpected key %s: not every version knows it", key)
	}
}

// An empty policy renders to a non-empty list that allows nothing.
func TestRenderEmpty(t *testing.T) {
	rendered, err := Policy{}.Render("2.3.0")
	if err != nil {
		t.Fatal(err)
	}
	got := yamlKeys(t, rendered)
	if want := []any{"nothing.invalid"}; !reflect.DeepEqual(got["api_allowlist"], want) {
		t.Errorf("api_allowlist is %v, want %v", got["api_allowlist"], want)
	}
	for _, key := range []string{"trusted_domains", "ssrf"} {
		if v, ok := got[key]; ok {
			t.Errorf("%s is %v, want none", key, v)
		}
	}
}

func TestRenderVersion(t *testing.T) {
	for _, version := range []string{"", "3.0.0", "v2.3.0", "latest"} {
		if _, err := (Policy{}).Render(version); err == nil {
			t.Errorf("rendered for version %q", version)
		}
	}
}

func yamlKeys(t *testing.T, data []byte) map[string]any {
	t.Helper()
	var keys map[string]any
	if err := yaml.Unmarshal(data, &keys); err != nil {
		t.Fatalf("%v in:\n%s", err, data)
	}
	return keys
}
