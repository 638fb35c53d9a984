package names

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/identifiers"

	"github.com/bot-bottle/bottle/internal/hint"
)

func TestSlug(t *testing.T) {
	long := strings.Repeat("x", maxSlug)
	for agent, want := range map[string]string{
		"impl": "impl", "Second One": "second-one", "  a  ": "a", "a__b--c": "a-b-c", "Ünit 7": "nit-7",
		"a/../b": "a-b", "-a-": "a", "İ": "i", long: long, long + "!": long,
		"": "", "???": "", "日本": "", long + "x": "",
	} {
		got, err := Slug(agent)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("Slug(%q) = %q, %v, want %q", agent, got, err, want)
		}
		if err != nil && hint.Of(err) == "" {
			t.Errorf("Slug(%q): no hint", agent)
		}
	}
}

// containerd accepts every identifier derived from a slug.
func TestSlugMakesIdentifiers(t *testing.T) {
	for _, agent := range append(randomNames(2000), strings.Repeat("x", maxSlug)) {
		slug, err := Slug(agent)
		if err != nil {
			continue
		}
		for _, suffix := range []string{"", "-99"} {
			id := Prefix + slug + suffix + ProxySuffix
			if err := identifiers.Validate(id); err != nil {
				t.Errorf("agent %q: %v", agent, err)
			}
		}
	}
}

// randomNames returns n names of characters that are valid and invalid in identifiers.
func randomNames(n int) []string {
	r := rand.New(rand.NewPCG(1, 2))
	letters := []rune("aZ09._- /é\n\x00:")
	names := make([]string, n)
	for i := range names {
		b := make([]rune, r.IntN(12))
		for j := range b {
			b[j] = letters[r.IntN(len(letters))]
			if r.IntN(2) > 0 {
				b[j] = letters[r.IntN(6)]
			}
		}
		names[i] = string(b)
	}
	return names
}

func TestFree(t *testing.T) {
	taken := map[string]bool{}
	for n := 1; n <= MaxSuffix; n++ {
		want := "claude-bottle-impl"
		if n > 1 {
			want = fmt.Sprintf("claude-bottle-impl-%d", n)
		}
		got, err := Free("Impl", taken)
		if err != nil || got != want {
			t.Fatalf("got %s, %v, want %s", got, err, want)
		}
		// A leftover proxy occupies the name as well.
		if n%2 == 0 {
			got += ProxySuffix
		}
		taken[got] = true
	}
	_, err := Free("Impl", taken)
	if err == nil || !strings.Contains(err.Error(), "99") || !strings.Contains(hint.Of(err), "bottle cleanup") {
		t.Errorf("got %v, hint %q", err, hint.Of(err))
	}
	if got, err := Free("other", taken); err != nil || got != "claude-bottle-other" {
		t.Errorf("another agent: %s, %v", got, err)
	}
	if _, err := Free("?", nil); err == nil {
		t.Error("no error for an agent without a slug")
	}
}

// A pinned name is accepted exactly if containerd accepts the identifiers derived from it.
func TestCheckPinnedMatchesContainerd(t *testing.T) {
	names := append(randomNames(20000), "", "a", "a..b", strings.Repeat("a", maxName), strings.Repeat("a", maxName+1),
		strings.Repeat("a", 200), "a\n", "a.proxyx")
	good := 0
	for _, name := range names {
		want := identifiers.Validate(name) == nil && identifiers.Validate(name+ProxySuffix) == nil
		err := CheckPinned(name, nil)
		if (err == nil) != want {
			t.Errorf("CheckPinned(%q) = %v, accepted by containerd: %v", name, err, want)
		}
		if want {
			good++
		}
	}
	if good < 1000 || good > len(names)-1000 {
		t.Errorf("%d of %d names are valid: the sample is too one-sided", good, len(names))
	}
}

func TestCheckPinnedTaken(t *testing.T) {
	for taken, pinned := range map[string]string{"mine": "mine", "mine.proxy": "mine", "": "a.proxy"} {
		err := CheckPinned(pinned, map[string]bool{taken: true})
		if err == nil || hint.Of(err) == "" {
			t.Errorf("%s with %q taken: %v, hint %q", pinned, taken, err, hint.Of(err))
		}
		if taken != "" && (!strings.Contains(hint.Of(err), "bottle rm -f mine") || !strings.Contains(hint.Of(err), "CLAUDE_BOTTLE_CONTAINER")) {
			t.Errorf("hint %q", hint.Of(err))
		}
	}
}

// TestNameThatRunscDrops: `runsc exec` starts itself without arguments that contain a
// word.
func TestNameThatRunscDrops(t *testing.T) {
	for name, ok := range map[string]bool{"claude-bottle-detach": false, "my-detached-2": false, "claude-bottle-det": true, "claude-bottle-Detach": true} {
		err := CheckID(name, 1000)
		if (err == nil) != ok || !ok && hint.Of(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
